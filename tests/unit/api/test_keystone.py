# SPDX-License-Identifier: Apache-2.0
"""Authentication by Keystone: what is refused, and how its answers are used.

The refusals equal those of a stock nova-api, byte for byte; the integration tests use real
tokens of a real Keystone.
"""

import contextlib
import importlib.util
import pathlib
from typing import Any, Protocol

import pytest
import webob
from keystonemiddleware import auth_token

from nova_precache import conf as configuration, exception, policy
from nova_precache.api import auth, faults
from nova_precache.cells import inventory
from nova_precache.db.engine import session
from tests.scripted_server import Answer, serving
from tests.unit.api.conftest import make_api

KEYSTONE = 'http://127.0.0.1:9'  # no server listens on the discard port
PROTECTED = ['/v2.1/os-aggregates', '/v2.1/abc/os-aggregates', '/v2.1/nothing', '/v1/requests']


class MakeGuarded(Protocol):
    """Makes the API with a configuration file for a Keystone that is unreachable.

    Options of ``[keystone_authtoken]`` extend the usual ones; None removes one.
    """

    def __call__(self, **options: str | None) -> Any: ...


@pytest.fixture
def make_guarded(tmp_path: pathlib.Path, database: session.Database) -> MakeGuarded:
    def make(**options: str | None) -> Any:
        keystone_authtoken = {
            'www_authenticate_uri': KEYSTONE,
            'auth_type': 'admin_token',
            'endpoint': KEYSTONE,
            'token': 'the-services-own',
            'http_request_max_retries': '0',
            'service_token_roles_required': 'true',
            **options,
        }
        lines = [f'{name} = {value}' for name, value in keystone_authtoken.items() if value]
        path = tmp_path / 'nova-precache.conf'
        path.write_text('\n'.join(['[keystone_authtoken]', *lines]))
        stock = inventory.Inventory(database)
        return make_api(configuration.new(config_files=[str(path)]), database, stock)

    return make


@pytest.fixture
def guarded(make_guarded: MakeGuarded) -> Any:
    return make_guarded()


@pytest.fixture
def behind_keystone(conf: Any) -> Any:
    """The middleware after keystonemiddleware, and what follows it."""

    @webob.dec.wsgify
    def show(request: webob.Request) -> webob.Response:
        context = auth.context_of(request.environ)
        return webob.Response(json_body={**context.to_wire(), 'token': context.auth_token})

    return faults.Middleware(auth.KeystoneContext(show, policy.Enforcer(conf)))


@pytest.mark.parametrize('path', PROTECTED)
@pytest.mark.parametrize(
    'headers', [{}, {'Accept': 'text/html'}, {'OpenStack-API-Version': 'nonsense'}]
)
def test_missing_token_refused_like_nova(guarded: Any, path: str, headers: dict[str, str]) -> None:
    response = guarded.get(path, version=None, headers=headers)
    assert response.status_int == 401
    assert response.headers['WWW-Authenticate'] == f'Keystone uri="{KEYSTONE}"'
    assert response.headers['Content-Type'] == 'application/json'
    assert response.json == {
        'error': {
            'code': 401,
            'title': 'Unauthorized',
            'message': 'The request you have made requires authentication.',
        }
    }
    assert response.headers['x-compute-request-id'].startswith('req-')
    assert 'OpenStack-API-Version' not in response.headers


def test_forged_identity_headers_ignored(guarded: Any) -> None:
    response = guarded.get(
        '/v2.1/os-aggregates',
        headers={'X-User-Id': 'me', 'X-Roles': 'admin', 'X-Identity-Status': 'Confirmed'},
    )
    assert response.status_int == 401


@pytest.mark.parametrize('path', ['/', '/v2.1', '/v2.1/', '/v1', '/v1/', '/v1/openapi.json'])
def test_documents_need_no_token(guarded: Any, path: str) -> None:
    assert guarded.get(path).status_int == 200
    assert guarded.get(path, token='garbage').status_int == 200


def test_token_does_not_follow_keystone_redirect(make_guarded: MakeGuarded) -> None:
    with serving() as keystone, serving() as elsewhere:
        keystone.answers = [Answer(302, headers={'Location': f'{elsewhere.url}/v3/auth/tokens'})]
        elsewhere.answers = [Answer(404)]

        response = make_guarded(endpoint=keystone.url).get('/v1/requests', token='a-good-token')

        assert response.status_int == 503
        assert keystone.requests[-1][1]['x-subject-token'] == 'a-good-token'
        ((_, headers),) = elsewhere.requests
        assert not {'a-good-token', 'the-services-own'} & set(headers.values())


def test_keystone_outage_accepts_no_token(guarded: Any, caplog: pytest.LogCaptureFixture) -> None:
    response = guarded.get('/v2.1/os-aggregates', token='a-good-token')
    assert response.status_int == 503
    assert 'The Keystone service is temporarily unavailable.' in response.text
    assert 'Unable to validate token' in caplog.text
    assert 'a-good-token' not in caplog.text
    assert 'the-services-own' not in caplog.text


class Keystone:
    """Validates tokens as scripted."""

    def __init__(self) -> None:
        self.answer: Exception | dict[str, Any] = {}

    def verify_token(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize('proof', [{}, auth_token.ksm_exceptions.InvalidToken()])
def test_keystone_outage_logs_two_lines(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    proof: Exception | dict[str, Any],
) -> None:
    keystone = Keystone()
    monkeypatch.setattr(
        auth_token.AuthProtocol, '_create_identity_server', lambda middleware: keystone
    )
    auth.AuthToken(None, {})
    for answer in (OSError('refused'), OSError('refused'), proof):
        keystone.answer = answer
        with contextlib.suppress(OSError, auth_token.ksm_exceptions.InvalidToken):
            keystone.verify_token('token')
    lines = [each for each in caplog.messages if '[keystone_authtoken]' in each]
    assert len(lines) == 2, lines
    assert 'is unavailable: refused' in lines[0]
    assert 'is available again' in lines[1]


@pytest.mark.parametrize(
    ('accept', 'content_type'),
    [('application/json', 'application/json'), ('*/*', 'text/html; charset=UTF-8')],
)
def test_delayed_decision_refuses_like_nova(
    make_guarded: MakeGuarded, accept: str, content_type: str
) -> None:
    api = make_guarded(delay_auth_decision='true')
    response = api.get('/v2.1/os-aggregates', headers={'Accept': accept})
    assert response.status_int == 401
    assert response.headers['WWW-Authenticate'] == f'Keystone uri="{KEYSTONE}"'
    assert response.headers['Content-Type'] == content_type
    assert 'This server could not verify that you are authorized' in response.text


def test_keystone_answer_becomes_context(behind_keystone: Any) -> None:
    request = webob.Request.blank(
        '/',
        headers={
            'X-Auth-Token': 'secret',
            'X-User-Id': 'user1',
            'X-Project-Id': 'project1',
            'X-Roles': 'admin,member',
        },
    )
    said = request.get_response(behind_keystone).json
    assert (said['user_id'], said['project_id']) == ('user1', 'project1')
    assert (said['roles'], said['is_admin']) == (['admin', 'member'], True)
    assert said['token'] == 'secret'


def test_admin_needs_role(behind_keystone: Any) -> None:
    request = webob.Request.blank('/', headers={'X-User-Id': 'user1', 'X-Roles': 'member'})
    assert request.get_response(behind_keystone).json['is_admin'] is False


def test_token_without_user_unauthorized(behind_keystone: Any) -> None:
    response = webob.Request.blank('/').get_response(behind_keystone)
    assert response.status_int == 401


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'auth_type': None}, r'^\[keystone_authtoken\] auth_type is not set'),
        ({'auth_section': 'glance'}, r'^\[glance\] auth_type is not set'),
        ({'auth_type': 'nonsense'}, r'^\[keystone_authtoken\] cannot be used: .*nonsense'),
        ({'auth_type': 'password'}, r'^\[keystone_authtoken\] cannot be used: .*auth_url'),
        ({'memcached_servers': 'here:1'}, r'^\[keystone_authtoken\] memcached_servers needs'),
    ],
)
def test_api_without_keystone_does_not_start(
    make_guarded: MakeGuarded,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, str | None],
    message: str,
) -> None:
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(exception.ConfigError, match=message) as refused:
        make_guarded(**options)
    assert '\n' not in str(refused.value)


def test_two_apis_use_two_keystones(make_guarded: MakeGuarded) -> None:
    apis = make_guarded(), make_guarded(www_authenticate_uri='http://other.example')
    refused = [api.get('/v1/requests').headers['WWW-Authenticate'] for api in apis]
    assert refused == [f'Keystone uri="{KEYSTONE}"', 'Keystone uri="http://other.example"']
