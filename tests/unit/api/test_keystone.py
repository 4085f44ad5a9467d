# SPDX-License-Identifier: Apache-2.0
"""Authentication by Keystone: what is refused, and what becomes of the headers it leaves."""

from typing import Any

import pytest
import webob

from nova_precache import policy
from nova_precache.api import auth, faults


@pytest.fixture
def behind_keystone(conf: Any) -> Any:
    """The step after keystonemiddleware, and what comes after it."""

    @webob.dec.wsgify
    def show(request: webob.Request) -> webob.Response:
        context = auth.context_of(request.environ)
        return webob.Response(json_body={**context.to_wire(), 'token': context.auth_token})

    return faults.Middleware(auth.KeystoneContext(show, policy.Enforcer(conf)))


def test_a_request_without_token_is_unauthorized(rebuild: Any, conf: Any) -> None:
    conf.set_override('auth_strategy', 'keystone', 'api')
    response = _keystone_api(rebuild, conf).get('/v2.1/os-aggregates')
    assert response.status_int == 401
    assert response.headers['WWW-Authenticate'].startswith('Keystone uri=')


def test_version_documents_need_no_token(rebuild: Any, conf: Any) -> None:
    conf.set_override('auth_strategy', 'keystone', 'api')
    api = _keystone_api(rebuild, conf)
    assert [api.get(path).status_int for path in ('/', '/v2.1', '/v2.1/', '/v1')] == [200] * 4


def test_what_keystone_says_becomes_the_context(behind_keystone: Any) -> None:
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


def test_without_the_role_nobody_is_an_admin(behind_keystone: Any) -> None:
    request = webob.Request.blank('/', headers={'X-User-Id': 'user1', 'X-Roles': 'member'})
    assert request.get_response(behind_keystone).json['is_admin'] is False


def test_a_token_of_no_user_is_unauthorized(behind_keystone: Any) -> None:
    response = webob.Request.blank('/').get_response(behind_keystone)
    assert response.status_int == 401
    assert response.json['unauthorized']['code'] == 401


def _keystone_api(rebuild: Any, conf: Any) -> Any:
    conf.register_opts(auth.auth_token.list_opts()[0][1], group='keystone_authtoken')
    conf.set_override('www_authenticate_uri', 'http://keystone.example:5000', 'keystone_authtoken')
    conf.set_override('service_token_roles_required', True, 'keystone_authtoken')
    return rebuild()
