# SPDX-License-Identifier: Apache-2.0
"""Where every caller is an admin, pages of other sites and other names of the host are refused."""

import json
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import webob

from nova_precache.wsgi import origins

PASSED = b'passed'


def _application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response('200 OK', [('Content-Type', 'text/plain')])
    return [PASSED]


def ask(method: str = 'GET', path: str = '/v1/requests', **headers: str | None) -> webob.Response:
    return ask_with(origins.OriginGuard(_application), method, path, **headers)


def ask_with(
    guard: origins.OriginGuard,
    method: str = 'GET',
    path: str = '/v1/requests',
    **headers: str | None,
) -> webob.Response:
    request = webob.Request.blank(path, method=method)
    for name, value in {'Host': '127.0.0.1:8774', **headers}.items():
        if value is None:
            del request.headers[name]
        else:
            request.headers[name.replace('_', '-')] = value
    return request.get_response(guard)


def refusal(answer: webob.Response) -> str:
    assert answer.status_int == 403, answer.text
    assert 'Access-Control-Allow-Origin' not in answer.headers
    return str(json.loads(answer.body)['forbidden']['message'])


@pytest.mark.parametrize(
    'host',
    [
        'localhost',
        'LocalHost:8774',
        '127.0.0.1',
        '127.0.0.1:1',
        '127.12.0.9:65535',
        '[::1]',
        '[::1]:8774',
        None,
    ],
)
def test_every_loopback_name_accepted(host: str | None) -> None:
    assert ask(Host=host).body == PASSED


@pytest.mark.parametrize(
    'host',
    [
        'evil.example',
        'evil.example:8774',
        'localhost.evil.example',
        '127.0.0.1.evil.example:8774',
        'evil.example:8774@localhost',
        'localhost@evil.example',
        'localhost, evil.example',
        'evil.example, 127.0.0.1',
        'localhost evil.example',
        'localhost/evil',
        '0.0.0.0:8774',
        '[::]:8774',
        '10.0.0.1',
        '2130706433',
        '[::1',
        '::1',
        'localhost:8774:1',
        'localhost:port',
        '',
    ],
)
def test_other_host_refused_and_named(host: str) -> None:
    message = refusal(ask(Host=host))
    assert f'Host {host!r} is refused' in message
    assert message.endswith('so it must name this machine')


@pytest.mark.parametrize('name', ['X-Forwarded-Host', 'Forwarded', 'X-Host', 'X-Original-Host'])
def test_proxy_headers_excuse_no_foreign_host(name: str) -> None:
    value = 'host=localhost' if name == 'Forwarded' else 'localhost'
    refusal(ask(Host='evil.example', **{name: value}))
    assert ask(**{name: 'evil.example'}).body == PASSED


@pytest.mark.parametrize(
    'origin',
    [
        'http://localhost',
        'http://localhost:3000',
        'https://127.0.0.1:8774',
        'http://127.9.9.9',
        'http://[::1]:8774',
    ],
)
@pytest.mark.parametrize('method', ['GET', 'POST', 'PUT', 'DELETE', 'OPTIONS'])
def test_local_pages_are_allowed(origin: str, method: str) -> None:
    assert ask(method, Origin=origin, Sec_Fetch_Site='same-site').body == PASSED


@pytest.mark.parametrize(
    'origin',
    [
        'http://evil.example',
        'https://evil.example:8774',
        'http://localhost.evil.example',
        'http://localhost@evil.example',
        'http://localhost:80@evil.example',
        'http://evil.example#localhost',
        'http://evil.example/localhost',
        'http://localhost http://evil.example',
        'http://localhost, http://evil.example',
        'http://localhost,http://localhost',
        'null',
        'NULL',
        'file://',
        'chrome-extension://localhost',
        'localhost',
        '//localhost',
        'http://',
        'http://0.0.0.0',
        '*',
        '',
    ],
)
@pytest.mark.parametrize('method', ['GET', 'POST', 'OPTIONS'])
@pytest.mark.parametrize('path', ['/', '/healthcheck', '/v1/requests', '/v2.1/os-aggregates'])
def test_other_origin_refused_on_every_path(origin: str, method: str, path: str) -> None:
    assert f'Origin {origin!r} is refused' in refusal(ask(method, path, Origin=origin))


@pytest.mark.parametrize('site', ['cross-site', 'Cross-Site', 'same-origin, cross-site'])
def test_cross_site_embedding_refused(site: str) -> None:
    assert 'Sec-Fetch-Site' in refusal(ask(Sec_Fetch_Site=site))


@pytest.mark.parametrize('site', ['none', 'same-origin', 'same-site', 'whatever'])
def test_typed_or_same_site_request_passes(site: str) -> None:
    assert ask(Sec_Fetch_Site=site).body == PASSED


def test_only_exact_allowed_origin_passes() -> None:
    guard = origins.OriginGuard(_application, ['https://dash.example'])
    assert (
        ask_with(guard, Origin='https://dash.example', Sec_Fetch_Site='cross-site').body == PASSED
    )
    for other in ('http://dash.example', 'https://dash.example:444', 'https://x.dash.example'):
        refusal(ask_with(guard, Origin=other))
    refusal(ask_with(guard, Host='dash.example'))


def test_star_allows_origins_but_not_hosts() -> None:
    guard = origins.OriginGuard(_application, ['*'])
    assert ask_with(guard, Origin='http://any.example').body == PASSED
    refusal(ask_with(guard, Host='any.example'))


@pytest.mark.parametrize(
    'url', ['https://cloud.example/precache', 'https://Cloud.example:443', 'https://cloud.example/']
)
def test_public_endpoint_accepted_as_host(url: str) -> None:
    guard = origins.OriginGuard(_application, (), url)
    for host in ('cloud.example', 'CLOUD.example:443', 'cloud.example:8774'):
        assert ask_with(guard, Host=host).body == PASSED
    assert ask_with(guard, Origin='https://cloud.example').body == PASSED
    refusal(ask_with(guard, Origin='http://cloud.example'))
    refusal(ask_with(guard, Host='cloud.example.evil.example'))


def test_refusal_logs_exactly_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    ask(path='/a%0ab%1b', Origin='x' * 5000)
    (line,) = caplog.messages
    assert line.startswith("GET '/a\\nb\\x1b': Origin 'xxx")
    assert len(line) < 500
