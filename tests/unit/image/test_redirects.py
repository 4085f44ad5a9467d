# SPDX-License-Identifier: Apache-2.0
"""Where Glance, or a proxy before it, may redirect to, and with which credentials."""

import contextlib
import dataclasses
import ssl
from collections.abc import Iterator

import pytest
import trustme

from nova_precache import exception
from nova_precache.image import glance
from tests.scripted_server import Answer, Server, serving
from tests.unit.image.test_glance import DATA, IMAGE_ID, SETTINGS, document, read, with_token

REDIRECTS = [301, 302, 303, 307, 308]
CREDENTIALS = {'x-auth-token', 'authorization', 'cookie', 'x-service-token'}
FILE = f'/v2/images/{IMAGE_ID}/file'
REST = Answer(206, DATA[100:], {'Content-Range': f'bytes 100-{len(DATA) - 1}/{len(DATA)}'})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    """Another origin: its port differs."""
    with serving() as script:
        yield script


@pytest.fixture
def images(server: Server) -> glance.GlanceImageService:
    return with_token(server)


def to(location: str, status: int = 302, **headers: str) -> Answer:
    return Answer(status, b'moved', {'Location': location, **headers})


@pytest.mark.parametrize('status', REDIRECTS)
def test_redirected_data_request_omits_token(
    server: Server, elsewhere: Server, images: glance.GlanceImageService, status: int
) -> None:
    server.answers = [to(f'{elsewhere.url}/mirror', status, **{'Set-Cookie': 'session=secret'})]
    elsewhere.answers = [Answer(body=DATA)]

    assert read(images) == DATA

    ((path, headers),) = elsewhere.requests
    assert path == '/mirror'
    assert not CREDENTIALS & headers.keys()
    assert 'secret' not in str(headers)
    assert headers['accept-encoding'] == 'identity'
    assert server.tokens() == ['secret-token']


@pytest.mark.parametrize('status', REDIRECTS)
def test_redirected_metadata_request_omits_token(
    server: Server, elsewhere: Server, images: glance.GlanceImageService, status: int
) -> None:
    server.answers = [to(f'{elsewhere.url}/v2/images/{IMAGE_ID}', status)]
    elsewhere.answers = [document(size=5)]

    assert images.show(IMAGE_ID).size == 5

    ((_, headers),) = elsewhere.requests
    assert not CREDENTIALS & headers.keys()
    assert 'secret' not in str(headers)


def test_other_host_name_changes_origin(server: Server, images: glance.GlanceImageService) -> None:
    server.answers = [to(server.url.replace('127.0.0.1', 'localhost') + '/x'), Answer(body=DATA)]
    assert read(images) == DATA
    assert server.tokens() == ['secret-token', None]


@pytest.mark.parametrize('status', REDIRECTS)
@pytest.mark.parametrize(
    ('location', 'path'),
    [
        ('/other/place', '/other/place'),
        ('data', f'/v2/images/{IMAGE_ID}/data'),
        ('../../store?key=1', '/v2/store?key=1'),
        ('?again=1', f'{FILE}?again=1'),
        ('/with%20space#part', '/with%20space'),
        ('/with space', '/with%20space'),
        ('/gr\u00fcn'.encode().decode('latin-1'), '/gr%C3%BCn'),
    ],
)
def test_relative_location_keeps_token(
    server: Server, images: glance.GlanceImageService, location: str, path: str, status: int
) -> None:
    server.answers = [to(location, status), Answer(body=DATA)]
    assert read(images) == DATA
    assert server.requests[1][0] == path
    assert server.tokens() == ['secret-token', 'secret-token']


def test_schemeless_location_may_change_origin(
    server: Server, elsewhere: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [to(f'{elsewhere.url.removeprefix("http:")}/mirror')]
    elsewhere.answers = [Answer(body=DATA)]
    assert read(images) == DATA
    assert elsewhere.tokens() == [None]


def test_same_origin_may_be_spelled_differently(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [to(server.url.replace('http:', 'HTTP:') + '/x'), document(size=5)]
    assert images.show(IMAGE_ID).size == 5
    assert server.tokens() == ['secret-token', 'secret-token']


def test_redirect_back_omits_token(
    server: Server, elsewhere: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [to(f'{elsewhere.url}/mirror'), Answer(body=DATA)]
    elsewhere.answers = [to(f'{server.url}/chosen/by/the/mirror')]
    assert read(images) == DATA
    assert server.tokens() == ['secret-token', None]


def test_range_follows_redirect(
    server: Server, elsewhere: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [to('/moved'), to(f'{elsewhere.url}/mirror')]
    elsewhere.answers = [REST]
    assert read(images, 100) == DATA[100:]
    asked = [headers['range'] for _, headers in server.requests + elsewhere.requests]
    assert asked == ['bytes=100-'] * 3


@pytest.mark.parametrize('refusal', [400, 416, 501])
def test_redirected_range_refusal_requests_whole(
    server: Server, elsewhere: Server, images: glance.GlanceImageService, refusal: int
) -> None:
    server.answers = [to(f'{elsewhere.url}/mirror')] * 2
    elsewhere.answers = [Answer(refusal), Answer(body=DATA)]
    with images.open(IMAGE_ID, 100, len(DATA)) as connection:
        assert connection.start_bytes == 0
    assert [headers.get('range') for _, headers in elsewhere.requests] == ['bytes=100-', None]


@pytest.mark.parametrize('status', REDIRECTS)
def test_redirect_loop_error_names_image(
    server: Server, images: glance.GlanceImageService, status: int
) -> None:
    why = f'{IMAGE_ID}.* redirected more than 10 times, the last time by {server.url}'
    server.answers = [to('/again', status)] * 11
    with pytest.raises(exception.DownloadInterrupted, match=why):
        read(images)
    assert server.answers == []
    server.answers = [to('/again', status)] * 11
    with pytest.raises(exception.ImageServiceUnavailable, match=why):
        images.show(IMAGE_ID)


def test_allowed_number_of_redirects_reaches_data(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [*[to('/again')] * 10, Answer(body=DATA)]
    assert read(images) == DATA


@pytest.mark.parametrize(
    'location',
    [
        'ftp://127.0.0.1/image',
        'file:///etc/passwd',
        'javascript:alert(1)',
        'http://',
        'http://[::1',
        'http://[12345::]]/x',
        'http://127.0.0.1:99999/x',
        'http://127.0.0.1:0/x',
        'http://127.0.0.1:port/x',
        'http://user:pass@127.0.0.1/x',
        'http://user@127.0.0.1/x',
        'http://good.example\\@127.0.0.1/x',
        'http://a b/x',
        'http://%31%32%37.0.0.1/x',
        'http://gr\u00fcn.example/x',
        '/\xff\xfe',
        '',
    ],
)
def test_invalid_location_error_names_image(
    server: Server, images: glance.GlanceImageService, location: str
) -> None:
    server.answers = [to(location)]
    with pytest.raises(exception.DownloadInterrupted, match=IMAGE_ID) as read_error:
        read(images)
    server.answers = [to(location)]
    with pytest.raises(exception.ImageServiceUnavailable, match=IMAGE_ID) as show_error:
        images.show(IMAGE_ID)
    for error in (read_error.value, show_error.value):
        assert 'redirected to' in str(error) or 'without a Location' in str(error)
        assert 'pass' not in str(error).replace('/etc/passwd', '')
    assert len(server.requests) == 2


def test_redirect_without_location_is_error(
    server: Server, images: glance.GlanceImageService
) -> None:
    server.answers = [Answer(307)]
    with pytest.raises(exception.DownloadInterrupted, match='HTTP 307 without a Location'):
        read(images)


@pytest.mark.parametrize('status', [300, 304, 305, 306])
def test_non_redirect_not_followed(
    server: Server, images: glance.GlanceImageService, status: int
) -> None:
    server.answers = [to('/other', status)]
    with pytest.raises(exception.DownloadInterrupted, match=f'HTTP {status}'):
        read(images)
    assert len(server.requests) == 1


@pytest.mark.parametrize('status', [401, 403, 404, 407, 410])
def test_refusal_by_other_origin_not_glances(
    server: Server, elsewhere: Server, images: glance.GlanceImageService, status: int
) -> None:
    why = f'redirected to {elsewhere.url}, which answers HTTP {status} without credentials'
    server.answers = [to(f'{elsewhere.url}/mirror?signature=secret')] * 2
    elsewhere.answers = [Answer(status)] * 2
    with pytest.raises(exception.DownloadInterrupted, match=why) as read_error:
        read(images)
    with pytest.raises(exception.ImageServiceUnavailable, match=why) as show_error:
        images.show(IMAGE_ID)
    assert 'secret' not in f'{read_error.value} {show_error.value}'


def test_unreachable_address_is_hidden(server: Server, images: glance.GlanceImageService) -> None:
    with serving() as gone:
        pass
    server.answers = [to(f'{gone.url}/mirror?signature=secret')]
    with pytest.raises(exception.DownloadInterrupted, match=f'{gone.url}, .*ConnectFail') as error:
        read(images)
    assert 'secret' not in str(error.value)


def test_token_replaced_after_redirect(server: Server) -> None:
    fresh = with_token(server, fresh_token=lambda: 'fresh-token')
    server.answers = [to('/moved'), Answer(401), Answer(body=DATA)]
    assert read(fresh) == DATA
    assert server.tokens() == ['secret-token', 'secret-token', 'fresh-token']


# TLS


@pytest.fixture(scope='module')
def authority() -> trustme.CA:
    return trustme.CA()


@contextlib.contextmanager
def serving_tls(authority: trustme.CA, *, asks: bool = False) -> Iterator[Server]:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert('127.0.0.1').configure_cert(tls)
    if asks:
        tls.verify_mode = ssl.CERT_OPTIONAL
        authority.configure_trust(tls)
    with serving(tls) as script:
        yield script


@pytest.fixture
def trusting(authority: trustme.CA) -> Iterator[glance.GlanceSettings]:
    with (
        authority.cert_pem.tempfile() as bundle,
        authority.issue_cert('caller').private_key_and_cert_chain_pem.tempfile() as caller,
    ):
        yield dataclasses.replace(SETTINGS, verify=bundle, client_certificate=caller)


def test_tls_does_not_redirect_to_http(
    authority: trustme.CA, trusting: glance.GlanceSettings, elsewhere: Server
) -> None:
    with serving_tls(authority) as secure:
        secure.answers = [to(f'{elsewhere.url}/mirror')]
        with pytest.raises(exception.DownloadInterrupted, match='from https to http://127'):
            read(with_token(secure, settings=trusting))
    assert elsewhere.requests == []


def test_redirect_to_tls_changes_origin(
    authority: trustme.CA, trusting: glance.GlanceSettings, server: Server
) -> None:
    with serving_tls(authority) as secure:
        server.answers = [to(f'{secure.url}/mirror')]
        secure.answers = [Answer(body=DATA)]
        assert read(with_token(server, settings=trusting)) == DATA
        assert secure.tokens() == [None]


def test_client_certificate_only_for_glance(
    authority: trustme.CA, trusting: glance.GlanceSettings
) -> None:
    with serving_tls(authority, asks=True) as first, serving_tls(authority, asks=True) as second:
        first.answers = [to(f'{second.url}/mirror')]
        second.answers = [Answer(body=DATA)]
        assert read(with_token(first, settings=trusting)) == DATA
        assert [each.certificates for each in (first, second)] == [[True], [False]]
