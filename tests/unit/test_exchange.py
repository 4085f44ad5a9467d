# SPDX-License-Identifier: Apache-2.0
"""What a session of keystoneauth sends when it is redirected: logins, tokens, bodies."""

from collections.abc import Callable, Iterator

import pytest
from keystoneauth1 import exceptions as ksa_exceptions
from keystoneauth1.identity import v3

from nova_precache import exchange, redirects
from tests.scripted_server import Answer, Server, serving
from tools.waiting import TIMEOUT_SECONDS

PASSWORD = 'very-secret'


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture
def elsewhere() -> Iterator[Server]:
    with serving() as script:
        yield script


@pytest.fixture
def session() -> exchange.Session:
    return exchange.Session(session=exchange.new_session(), timeout=TIMEOUT_SECONDS)


def to(location: str, status: int = 302) -> Answer:
    return Answer(status, b'moved', {'Location': location})


@pytest.mark.parametrize('status', sorted(redirects.STATUSES))
def test_login_not_sent_to_other_origin(
    server: Server, elsewhere: Server, session: exchange.Session, status: int
) -> None:
    login = v3.Password(
        auth_url=f'{server.url}/v3',
        username='me',
        password=PASSWORD,
        user_domain_id='default',
        project_id='p',
    )
    server.answers = [to(f'{elsewhere.url}/v3/auth/tokens', status)]
    with pytest.raises(redirects.RedirectFailed, match=f'POST is redirected to {elsewhere.url}'):
        session.get_token(login)
    assert PASSWORD.encode() in server.bodies[0]
    assert elsewhere.requests == []


@pytest.mark.parametrize('status', [301, 302, 307, 308])
def test_body_is_resent_within_origin(
    server: Server, session: exchange.Session, status: int
) -> None:
    server.answers = [to('/new/place', status), Answer(body=b'{}')]
    assert session.post(f'{server.url}/old', json={'a': 1}).json() == {}
    assert server.bodies == [b'{"a": 1}'] * 2


def test_redirect_from_post_fails(server: Server, session: exchange.Session) -> None:
    server.answers = [to('/result', 303)]
    with pytest.raises(redirects.RedirectFailed, match='POST is answered HTTP 303'):
        session.post(f'{server.url}/old', json={'a': 1})
    assert len(server.requests) == 1


def test_caller_headers_stay_within_origin(
    server: Server, elsewhere: Server, session: exchange.Session
) -> None:
    server.answers = [to(f'{elsewhere.url}/x')]
    elsewhere.answers = [Answer()]
    secrets = ('X-Auth-Token', 'X-Subject-Token', 'X-Service-Token', 'Authorization', 'Cookie')
    headers = {**dict.fromkeys(secrets, 'secret'), 'X-Anything': 'secret', 'Range': 'bytes=1-'}
    assert session.get(f'{server.url}/x?a=secret', headers=headers).status_code == 200
    ((path, sent),) = elsewhere.requests
    assert path == '/x'
    assert 'secret' not in str(sent)
    assert sent['range'] == 'bytes=1-'


@pytest.mark.parametrize('raises', [True, False])
def test_error_of_other_origin_raised(
    server: Server, elsewhere: Server, session: exchange.Session, raises: bool
) -> None:
    server.answers = [to(f'{elsewhere.url}/x')]
    elsewhere.answers = [Answer(500)]
    if not raises:
        assert session.get(f'{server.url}/x', raise_exc=False).status_code == 500
        return
    with pytest.raises(ksa_exceptions.InternalServerError):
        session.get(f'{server.url}/x')


@pytest.mark.parametrize('raises', [True, False])
def test_redirected_refusal_is_redirect_error(
    server: Server, elsewhere: Server, session: exchange.Session, raises: bool
) -> None:
    server.answers = [to(f'{elsewhere.url}/x')]
    elsewhere.answers = [Answer(404)]
    with pytest.raises(redirects.RedirectFailed, match='answers HTTP 404 without credentials'):
        session.get(f'{server.url}/x', raise_exc=raises)


def test_cookie_does_not_cross_ports(
    server: Server, elsewhere: Server, session: exchange.Session
) -> None:
    server.answers = [Answer(headers={'Set-Cookie': 'session=secret'}), to(f'{elsewhere.url}/x')]
    elsewhere.answers = [Answer()]
    for _ in range(2):
        session.get(f'{server.url}/x')
    assert 'cookie' in server.requests[1][1]
    assert 'cookie' not in elsewhere.requests[0][1]


def test_redirect_can_be_returned_unfollowed(server: Server, session: exchange.Session) -> None:
    server.answers = [to('/other')]
    assert session.get(f'{server.url}/x', redirect=False).headers['Location'] == '/other'
    assert len(server.requests) == 1


def test_redirect_body_not_awaited(server: Server, session: exchange.Session) -> None:
    server.answers = [
        Answer(302, b'endless', {'Location': '/data'}, length=2**40, hang=True),
        Answer(body=b'data'),
    ]
    assert session.get(f'{server.url}/x', stream=True, log=False).content == b'data'
    assert server.connection_closed.wait(TIMEOUT_SECONDS)


@pytest.mark.parametrize(
    'host', ['a..b', f'{"x" * 64}.example', '[::::]', '[1:2]', '.', '-', 'a' * 254]
)
@pytest.mark.parametrize('scheme', ['http:', ''])
def test_odd_host_failed_redirect(
    server: Server, session: exchange.Session, host: str, scheme: str
) -> None:
    server.answers = [to(f'{scheme}//{host}/x')]
    with pytest.raises(redirects.RedirectFailed):
        session.get(f'{server.url}/x')


def test_redirect_target_not_logged(
    server: Server,
    session: exchange.Session,
    free_port: Callable[[], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.answers = [to(f'http://127.0.0.1:{free_port()}/x?signature=hidden')]
    with pytest.raises(redirects.RedirectFailed) as failed:
        session.get(f'{server.url}/x', connect_retries=1, log=False)
    assert 'hidden' not in f'{failed.value}{caplog.text}'


def test_scheme_host_and_port_distinguish_origins() -> None:
    urls = [
        'http://host',
        'https://host',
        'http://host:8080',
        'http://host.',
        'http://a.host',
        'http://[::1]',
        'http://127.0.0.1',
    ]
    assert len({redirects.origin(f'{url}/path') for url in urls}) == len(urls)


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('http://host', 'HTTP://HOST/x?y'),
        ('http://host', 'http://host:80/'),
        ('https://host:443/x', 'https://host'),
        ('http://[::1]:80', 'http://[::1]/'),
    ],
)
def test_origin_has_several_spellings(one: str, other: str) -> None:
    assert redirects.origin(one) == redirects.origin(other)
