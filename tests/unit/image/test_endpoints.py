# SPDX-License-Identifier: Apache-2.0
"""To which image services a call may direct a compute, however their URLs are spelled."""

import http.server
import logging
import threading
from collections.abc import Iterator

import pytest

from nova_precache import conf as options, exception, wire
from nova_precache.image import endpoints, glance
from nova_precache.wiring import images as wiring_images

ALLOWED = 'http://glance.example:9292'


@pytest.mark.parametrize(
    ('spelled', 'normal'),
    [
        ('http://glance.example', 'http://glance.example'),
        ('HTTP://Glance.EXAMPLE:80/', 'http://glance.example'),
        ('http://glance.example:', 'http://glance.example'),
        ('https://glance.example:443/v2/', 'https://glance.example'),
        ('https://glance.example:80', 'https://glance.example:80'),
        ('http://glance.example:09292/v2.1//', 'http://glance.example:9292'),
        ('https://cloud.example/image', 'https://cloud.example/image'),
        ('https://cloud.example/Image/v2', 'https://cloud.example/Image'),
        ('http://127.0.0.1:9292', 'http://127.0.0.1:9292'),
        ('http://[0:0::1]:9292/', 'http://[::1]:9292'),
        ('http://glance_api.local-1.example', 'http://glance_api.local-1.example'),
        ('http://xn--glnce-gra.example', 'http://xn--glnce-gra.example'),
    ],
)
def test_spellings_of_endpoint_are_equal(spelled: str, normal: str) -> None:
    assert endpoints.normalise(spelled) == normal
    assert endpoints.normalise(normal) == normal


NO_ENDPOINTS = [
    '',
    'glance.example',
    '//glance.example',
    'ftp://glance.example',
    'file:///etc/passwd',
    'http:/glance.example',
    'http://',
    'http://:9292',
    'http://user@glance.example',
    'http://user:secret@glance.example',
    'http://glance.example:9292@evil.example',
    'http://evil.example\\@glance.example',
    'http://evil.example\\.glance.example',
    'http://glance.example%2eevil.example',
    'http://glance.example%00.evil.example',
    'http://glance.example/%2e%2e/',
    'http://glance.example/../other',
    'http://glance.example/.',
    'http://glance.example//v2/x//y',
    'http://glance.example?x=/v2',
    'http://glance.example/?',
    'http://glance.example#@evil.example',
    'http://glance.example;@evil.example',
    'http://glance.example:9292:80',
    'http://glance.example:0',
    'http://glance.example:65536',
    'http://glance.example:-1',
    'http://glance.example:9292x',
    'http://glance.example:\uff19\uff12\uff19\uff12',
    'http://glänce.example',
    'http://\uff47lance.example',
    'http://glance\u3002example',
    'http://glance.example\n',
    'http://glance.example\r\nX-Evil: 1',
    ' http://glance.example',
    'http://glance .example',
    'http://glance.example\t',
    'http://glance.example\x00',
    'http://-evil.example',
    'http://[::1',
    'http://[1:2]',
    'http://[fe80::1%25eth0]',
    'http://[::1]x',
    'http://glance.example\ud800',
    f'http://glance.example/{"a" * wire.ENDPOINT_MAX}',
    7,
    True,
    b'http://glance.example',
    ['http://glance.example'],
    {'url': 'http://glance.example'},
]


@pytest.mark.parametrize('url', NO_ENDPOINTS, ids=repr)
def test_non_plain_url_refused_and_hidden(url: object) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        endpoints.normalise(url)
    assert 'secret' not in str(refused.value)
    assert 'evil' not in str(refused.value)


def _settings(allowed: str = '', override: str | None = None) -> glance.GlanceSettings:
    conf = options.new(config_files=[])
    conf.set_override('allowed_endpoints', [each for each in allowed.split(',') if each], 'glance')
    conf.set_override('endpoint_override', override, 'glance')
    return glance.GlanceSettings.from_conf(conf)


@pytest.mark.parametrize(
    'named', [ALLOWED, 'http://GLANCE.example:9292/v2/', f'{ALLOWED}/', f'{ALLOWED}/v2']
)
def test_listed_endpoint_allowed_in_any_spelling(named: str) -> None:
    settings = _settings(f'https://other.example,{ALLOWED}/v2')
    assert settings.endpoint_of_call(named) == ALLOWED


@pytest.mark.parametrize(
    'named',
    [
        'https://glance.example:9292',
        'http://glance.example',
        'http://glance.example:9293',
        'http://glance.example.evil:9292',
        'http://evil-glance.example:9292',
        'http://example:9292',
        f'{ALLOWED}/images',
        'http://127.0.0.1:9292',
    ],
)
def test_unlisted_endpoint_refused_naming_option(named: str) -> None:
    with pytest.raises(exception.InvalidInput) as refused:
        _settings(ALLOWED).endpoint_of_call(named)
    shown = endpoints.normalise(named)
    assert str(refused.value) == (
        f'image_endpoint {shown} is not in [glance] allowed_endpoints of this host'
    )


def test_without_list_only_plain_urls_allowed() -> None:
    settings = _settings()
    assert settings.endpoint_of_call('http://anywhere.example/v2') == 'http://anywhere.example'
    assert settings.endpoint_of_call(None) is None
    with pytest.raises(exception.InvalidInput, match='image_endpoint: not a plain http or https'):
        settings.endpoint_of_call('http://user:secret@glance.example')


@pytest.mark.parametrize('named', ['http://evil.example', 'garbage', None, 7])
def test_override_ignores_endpoint_of_call(named: object) -> None:
    assert _settings(ALLOWED, 'http://site.example').endpoint_of_call(named) is None


@pytest.mark.parametrize('item', ['glance.example', 'http://user:secret@glance.example', '*'])
def test_invalid_list_refused_at_start(item: str) -> None:
    with pytest.raises(exception.ConfigError, match='allowed_endpoints') as refused:
        _settings(f'{ALLOWED},{item}')
    assert 'secret' not in str(refused.value)


@pytest.mark.parametrize(
    ('allowed', 'override', 'warnings'),
    [('', None, 1), (ALLOWED, None, 0), ('', ALLOWED, 0)],
)
def test_unrestricted_compute_recommends_option_at_start(
    caplog: pytest.LogCaptureFixture, allowed: str, override: str | None, warnings: int
) -> None:
    caplog.set_level(logging.WARNING, 'nova_precache')
    conf = options.new(config_files=[])
    conf.set_override('allowed_endpoints', [allowed] if allowed else [], 'glance')
    conf.set_override('endpoint_override', override, 'glance')

    wiring_images.of_calls(conf)

    assert len(caplog.messages) == warnings
    assert all('[glance] allowed_endpoints' in message for message in caplog.messages)


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str]]]:
    """A server that a compute must not use, and the requests it received."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f'{self.path} {self.headers.get("X-Auth-Token")}')
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keep the output of the tests clean."""

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}', asked
        server.shutdown()
        thread.join()


def test_refused_endpoint_gets_no_request(
    elsewhere: tuple[str, list[str]],
) -> None:
    url, asked = elsewhere
    conf = options.new(config_files=[])
    conf.set_override('allowed_endpoints', [ALLOWED], 'glance')
    images_for = wiring_images.of_calls(conf)

    with pytest.raises(exception.InvalidInput, match='allowed_endpoints'):
        images_for(url, 'a-token', lambda: 'another-token')

    assert asked == []


@pytest.mark.parametrize(
    'image_id', ['../../evil', 'a/../../v2/tasks', '//evil.example/x', '@evil.example', '%2e%2e']
)
def test_image_id_cannot_change_path(elsewhere: tuple[str, list[str]], image_id: str) -> None:
    url, asked = elsewhere
    conf = options.new(config_files=[])
    conf.set_override('allowed_endpoints', [url], 'glance')
    images = wiring_images.of_calls(conf)(url, 'a-token', lambda: None)

    with pytest.raises(exception.ImageNotUsable):
        images.show(image_id)
    with pytest.raises(exception.ImageGone), images.open(image_id):
        pass

    assert asked == []
