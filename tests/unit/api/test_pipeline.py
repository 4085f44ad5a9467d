# SPDX-License-Identifier: Apache-2.0
"""The checks on every request: ids, sizes, paths, methods, content types, accidents."""

import dataclasses
import io
import json
import logging
import pathlib
import time
import uuid
from typing import Any

import pytest
import webob
from oslo_context import context as oslo_context
from oslo_middleware.healthcheck import opts as healthcheck_opts

from nova_precache import exception, model
from nova_precache.api import app, auth, requestlog
from nova_precache.db import agents, hearing, services
from nova_precache.db.engine import session
from nova_precache.wsgi import gateway


def test_answers_have_both_request_ids(api: Any) -> None:
    response = api.get('/v2.1/os-aggregates')
    assert response.headers['x-openstack-request-id'].startswith('req-')
    assert response.headers['x-compute-request-id'] == response.headers['x-openstack-request-id']


def test_cors_allows_headers_of_nova(api: Any, rebuild: Any, conf: Any) -> None:
    conf.set_override('allowed_origin', ['https://horizon.example'], 'cors')
    asked = {
        'Origin': 'https://horizon.example',
        'Access-Control-Request-Method': 'PUT',
        'Access-Control-Request-Headers': 'X-Auth-Token,OpenStack-API-Version',
    }
    response = rebuild().call('OPTIONS', '/v2.1/os-aggregates/1', headers=asked)
    assert (response.status_int, response.body) == (200, b'')
    assert response.headers['Access-Control-Allow-Origin'] == 'https://horizon.example'
    assert response.headers['Access-Control-Allow-Methods'] == 'PUT'
    assert response.headers['Access-Control-Allow-Headers'] == 'X-Auth-Token,OpenStack-API-Version'


def test_too_large_body_refused(api: Any) -> None:
    response = api.post('/v2.1/os-aggregates', {'aggregate': {'name': 'x' * 200_000}})
    assert response.status_int == 413
    assert api.inventory.list_aggregates() == []


class BrokenOff(io.RawIOBase):
    """A body that ends before the announced length, as servers report it."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        raise OSError('the client went away')


def test_truncated_body_is_malformed(api: Any) -> None:
    request = webob.Request.blank('/v2.1/os-aggregates', method='POST')
    request.body_file, request.content_length = BrokenOff(), 20
    response = request.get_response(api.application)
    assert response.status_int == 400
    assert response.json == {'badRequest': {'code': 400, 'message': 'Malformed request body'}}


class Endless(io.RawIOBase):
    """A body without an end, which counts the bytes read."""

    def __init__(self) -> None:
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, 'all of it is asked for at once'
        self.read_bytes += size
        return b' ' * size


@pytest.mark.parametrize('length', [None, '1610612736', '9' * 40, '-1', 'five'])
@pytest.mark.parametrize('method', ['GET', 'POST', 'PUT', 'OPTIONS'])
@pytest.mark.parametrize(
    'path', ['/healthcheck', '/', '/v1/', '/v1/requests', '/v2.1/os-aggregates', '/nowhere']
)
def test_body_limit_holds_under_other_servers(
    api: Any, conf: Any, path: str, method: str, length: str | None
) -> None:
    body = Endless()
    request = webob.Request.blank(path, method=method)
    request.environ['wsgi.input'] = body
    request.environ['wsgi.input_terminated'] = True
    if length is not None:
        request.environ['CONTENT_LENGTH'] = length

    response = request.get_response(api.application)

    assert body.read_bytes <= 2 * conf.oslo_middleware.max_request_body_size
    assert response.status_int < 500


@pytest.mark.parametrize(('waited_seconds', 'status'), [(app.ANSWER_SECONDS + 1, 503), (0, 200)])
def test_request_time_includes_thread_wait(api: Any, waited_seconds: float, status: int) -> None:
    request = webob.Request.blank('/v2.1/os-aggregates', method='POST')
    request.json = {'aggregate': {'name': 'edge'}}
    request.environ[gateway.ARRIVED_AT] = time.monotonic() - waited_seconds
    assert request.get_response(api.application).status_int == status
    assert len(api.inventory.list_aggregates()) == (status == 200)


def test_unknown_path_returns_fault(api: Any) -> None:
    response = api.get('/v1/nothing')
    assert response.status_int == 404
    assert response.json['itemNotFound']['message'] == 'The resource could not be found.'


def test_wrong_method_names_allowed_ones(api: Any) -> None:
    response = api.call('DELETE', '/v1/requests')
    assert response.status_int == 405
    assert response.json['badMethod']['code'] == 405
    assert response.headers['Allow'] == 'GET, POST'


@pytest.mark.parametrize('raw', [b'{', b'nonsense', b'\xff\xfe', b'[' * 100_000])
def test_non_json_body_malformed(api: Any, raw: bytes) -> None:
    response = api.post('/v2.1/os-aggregates', raw=raw)
    assert response.status_int == 400
    assert response.json == {'badRequest': {'code': 400, 'message': 'Malformed request body'}}
    assert api.inventory.list_aggregates() == []


def test_older_content_type_supported(api: Any) -> None:
    older = 'application/vnd.openstack.compute+json'
    response = api.post(
        '/v2.1/os-aggregates',
        raw=json.dumps({'aggregate': {'name': 'edge'}}).encode(),
        headers={'Content-Type': older, 'Accept': older},
    )
    assert response.status_int == 200
    assert response.headers['Content-Type'] == older


@pytest.mark.parametrize('raw', [b'', b'{}', b'{"a": 1, "b": 2}', b'[]', b'"ab"', b'{'])
def test_body_without_single_action_malformed(api: Any, raw: bytes) -> None:
    response = api.post('/v2.1/os-aggregates/1/action', raw=raw)
    assert response.status_int == 400
    assert response.json['badRequest']['message'] == 'Malformed request body'


@pytest.mark.parametrize('raw', [b'null', b'5', b'[1]', b'"a"'])
def test_non_object_action_not_found(api: Any, raw: bytes) -> None:
    response = api.post('/v2.1/os-aggregates/1/action', raw=raw)
    assert response.status_int == 404
    assert response.json['itemNotFound']['message'] == 'The resource could not be found.'


def test_caller_without_project_names_any(api: Any) -> None:
    assert api.get('/v2.1/abc123/os-aggregates').status_int == 200
    assert api.get('/v2.1/abc123/os-aggregates/7').status_int == 404


def test_unexpected_error_shows_only_request_id(
    api: Any, rebuild: Any, caplog: pytest.LogCaptureFixture
) -> None:
    broken = rebuild(enforcer=None)
    response = broken.get('/v2.1/os-aggregates')
    assert response.status_int == 500
    fault = response.json['computeFault']
    assert fault['code'] == 500
    assert 'NoneType' not in fault['message']
    assert response.headers['x-openstack-request-id'] in fault['message']
    assert "'NoneType' object has no attribute" in caplog.text


def test_request_logged_once_without_query(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, 'nova_precache.api.requestlog'):
        api.get('/v1/requests?limit=1', token='secret')
    lines = [r.getMessage() for r in caplog.records if r.name == 'nova_precache.api.requestlog']
    assert len(lines) == 1
    assert '"GET /v1/requests" status: 200' in lines[0]
    assert 'limit=' not in lines[0]
    assert 'secret' not in caplog.text


@pytest.mark.parametrize('path', ['/v2.1', '/v2.1/os-aggregates', '/v1/nothing'])
def test_log_lines_carry_request_ids(api: Any, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    logged: list[tuple[str, str | None]] = []

    def note(level: int, *line: object) -> None:
        current = oslo_context.get_current()
        assert current is not None
        logged.append((current.request_id, current.global_request_id))

    monkeypatch.setattr(requestlog.LOG, 'log', note)
    callers = f'req-{uuid.uuid4()}'
    first = api.get(path, headers={'X-Openstack-Request-Id': callers})
    second = api.get(path, headers={'X-Openstack-Request-Id': 'forged'})
    assert logged == [
        (first.headers['X-Openstack-Request-Id'], callers),
        (second.headers['X-Openstack-Request-Id'], None),
    ]


@pytest.mark.parametrize(
    ('method', 'path', 'level'),
    [
        ('GET', '/v1/requests', 'DEBUG'),
        ('HEAD', '/v1/', 'DEBUG'),
        ('GET', '/v1/requests/unknown', 'INFO'),
        ('GET', '/v1/nothing', 'INFO'),
        ('POST', '/v2.1/os-aggregates', 'INFO'),
        ('DELETE', '/v2.1/os-aggregates/77', 'INFO'),
    ],
)
def test_only_successful_reads_are_debug(
    api: Any, caplog: pytest.LogCaptureFixture, method: str, path: str, level: str
) -> None:
    with caplog.at_level(logging.DEBUG, 'nova_precache.api.requestlog'):
        api.call(method, path)
    lines = [r for r in caplog.records if r.name == 'nova_precache.api.requestlog']
    assert [(r.levelname, f'"{method} {path}"' in r.getMessage()) for r in lines] == [(level, True)]


def test_path_cannot_forge_log_line(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, 'nova_precache.api.requestlog'):
        assert api.get('/v1/%0aforged%ff').status_int == 404
    assert '"GET /v1/%0Aforged%FF" status: 404' in caplog.text


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.0.2.1', 'example.org', ''])
def test_unauthenticated_api_refuses_public_address(host: str) -> None:
    with pytest.raises(exception.ConfigError, match='bind_host'):
        auth.refuse_exposure('noauth2', host)
    auth.refuse_exposure('keystone', host)


@pytest.mark.parametrize('host', ['127.0.0.1', '127.8.8.8', '::1', 'localhost'])
def test_unauthenticated_api_accepts_loopback(host: str) -> None:
    auth.refuse_exposure('noauth2', host)


def test_unauthenticated_api_refuses_other_servers() -> None:
    with pytest.raises(exception.ConfigError, match='its WSGI server') as refused:
        auth.refuse_foreign_server('noauth2')
    assert 'bind_host' not in str(refused.value)
    auth.refuse_foreign_server('keystone')


@dataclasses.dataclass
class SeenContext:
    context: Any = None

    def __call__(self, context: Any) -> Any:
        self.context = context
        raise exception.ImageServiceUnavailable('seen')


@pytest.mark.parametrize(
    ('token', 'user_id', 'project_id', 'roles', 'is_admin'),
    [
        (None, 'admin', None, ['admin', 'manager', 'member', 'reader'], True),
        ('notused', 'admin', None, ['admin', 'manager', 'member', 'reader'], True),
        ('u:p:admin', 'u', 'p', ['admin', 'manager', 'member', 'reader'], True),
    ],
)
def test_token_without_keystone_names_caller(
    rebuild: Any, aggregate: Any, token: str | None, user_id: str, project_id: str | None,
    roles: list[str], is_admin: bool,
) -> None:  # fmt: skip
    seen = SeenContext()
    image = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
    rebuild(images_for=seen).post(
        f'/v2.1/os-aggregates/{aggregate.id}/images', {'cache': [{'id': image}]}, token=token
    )
    context = seen.context
    assert (context.auth_token, context.user_id, context.project_id) == (token, user_id, project_id)
    assert (context.roles, context.is_admin) == (roles, is_admin)
    assert context.request_id.startswith('req-')


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_health_is_public_and_unlogged(
    rebuild: Any, conf: Any, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    conf.set_override('auth_strategy', 'keystone', 'api')
    auth.auth_token.AuthProtocol(None, {'oslo_config_config': conf})
    conf.set_override('auth_type', 'none', 'keystone_authtoken')
    api = rebuild()

    with caplog.at_level(logging.INFO):
        response = api.call(method, '/healthcheck')

    assert response.status_int == (200 if method == 'GET' else 204)
    assert 'healthcheck' not in caplog.text
    assert api.get('/v1/requests').status_int == 401


def test_disabled_process_reports_unhealthy(
    rebuild: Any, api: Any, conf: Any, tmp_path: pathlib.Path
) -> None:
    off = tmp_path / 'off'
    conf.set_override('backends', ['disable_by_file'], 'healthcheck')
    conf.register_opts(healthcheck_opts.DISABLE_BY_FILE_OPTS, 'healthcheck')
    conf.set_override('disable_by_file_path', str(off), 'healthcheck')
    api = rebuild()

    before = api.get('/healthcheck')
    off.touch()
    after = api.get('/healthcheck')

    assert (before.status_int, after.status_int) == (200, 503)
    assert after.text == 'DISABLED BY FILE'


def test_health_hidden_from_other_networks(rebuild: Any, api: Any, conf: Any) -> None:
    conf.set_override('allowed_source_ranges', ['192.0.2.0/24'], 'healthcheck')

    response = rebuild().call('GET', '/healthcheck', environ={'REMOTE_ADDR': '198.51.100.1'})
    allowed = rebuild().call('GET', '/healthcheck', environ={'REMOTE_ADDR': '192.0.2.1'})

    assert (response.status_int, allowed.status_int) == (300, 200)  # as any path unknown here


@pytest.fixture
def known(database: session.Database) -> services.Services:
    return services.Services(database, 60, 10)


CONDUCTOR = model.ServiceProcess('c-1', model.Binary.CONDUCTOR, 'ctl1', '1.0')


def test_api_without_conductor_is_live(api: Any) -> None:
    assert api.get('/healthcheck').status_int == 200

    answer = api.get('/healthcheck/ready')

    assert answer.status_int == 503
    assert answer.text == 'no conductor is up; 1 of 1 cells are not up'


def test_api_with_conductor_is_ready(
    api: Any, known: services.Services, database: session.Database
) -> None:
    known.report(CONDUCTOR, replaces=True)
    hearing.Hearings(database, 30).note([api.inventory.list_cells()[0].uuid])

    answer = api.get('/healthcheck/ready')

    assert (answer.status_int, answer.text) == (200, 'OK')
    assert api.call('HEAD', '/healthcheck/ready').status_int == 204


def test_dead_cell_keeps_api_ready(api: Any, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    cell = api.inventory.list_cells()[0]
    api.inventory.create_cell('secret-site', 'fake:///cell2')
    agents.Agents(api.database, 60).register(model.Agent('h1', 'a', cell.uuid, version='0.9'))

    answer = api.get('/healthcheck/ready')

    assert answer.status_int == 200
    assert answer.text == 'OK; 2 of 2 cells are not up; services of 2 releases run'


def test_detailed_health_names_cells(
    rebuild: Any, api: Any, conf: Any, known: services.Services
) -> None:
    known.report(CONDUCTOR, replaces=True)
    conf.set_override('detailed', True, 'healthcheck')

    answer = rebuild().get('/healthcheck/ready', headers={'Accept': 'application/json'})

    [ready] = answer.json['reasons']
    assert ready['details'] == 'cell cell1: no conductor has connected to its broker yet'


def test_api_without_database_is_not_ready(
    rebuild: Any, api: Any, known: services.Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**which: Any) -> None:
        raise exception.DatabaseUnavailable('the server has gone away')

    monkeypatch.setattr(known, 'list_page', away)
    again = rebuild(services=known)

    answer = again.get('/healthcheck/ready')

    assert (answer.status_int, answer.text) == (503, 'the database is unavailable')
    assert again.get('/healthcheck').status_int == 200


def test_ready_check_asks_rarely(
    rebuild: Any, api: Any, known: services.Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    listing = known.list_page

    def count(**which: Any) -> Any:
        asked.append(which)
        return listing(**which)

    monkeypatch.setattr(known, 'list_page', count)
    again = rebuild(services=known)

    for _ in range(5):
        again.get('/healthcheck/ready')

    assert len(asked) == 1


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('backends', ['disable_by_file', 'enable_by_files']),
        ('allowed_source_ranges', ['everywhere']),
    ],
)
def test_invalid_health_options_refused(
    rebuild: Any, api: Any, conf: Any, option: str, value: list[str]
) -> None:
    conf.set_override(option, value, 'healthcheck')
    with pytest.raises(exception.ConfigError, match=r'\[healthcheck\] cannot be used'):
        rebuild()
