# SPDX-License-Identifier: Apache-2.0
"""A real Keystone as a child process, for clients that log in and read a catalog.

It keeps users and endpoints in a directory of its own and forgets nothing while it
runs.
"""

import dataclasses
import functools
import os
import pathlib
import socket
import uuid
from collections.abc import Mapping
from typing import Any

import requests

from nova_precache.standalone import environment, process
from tests.leaks import SECRETS

VERSION = '30.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'keystone-{VERSION}', requirements=(f'keystone=={VERSION}', 'waitress~=3.0')
)
REGION = 'RegionOne'

# Keystone takes the arguments of its program for its own, so none may be left.
_SERVE = """\
import socket, sys
listener = socket.socket(fileno=int(sys.argv.pop()))
import waitress
from keystone.wsgi.api import application
waitress.serve(application, sockets=[listener])
"""
# A receipt is for a login in several steps. Its keys are never used, and unless they
# are said to be the keys of tokens, they are made in /etc/keystone.
_CONFIGURATION = """\
[database]
connection = sqlite:///{data}/keystone.sqlite

[token]
provider = fernet

[fernet_tokens]
key_repository = {data}/fernet

[fernet_receipts]
key_repository = {data}/fernet

[identity]
password_hash_rounds = 4

[oslo_middleware]
enable_proxy_headers_parsing = true
"""


@dataclasses.dataclass(frozen=True)
class User:
    """Who logs in, and to which project; all are of the default domain."""

    name: str
    password: str
    project: str


class KeystoneServer(process.ServerProcess):
    """A Keystone on a free port of the loopback, with its administrator and no services.

    :param directory: an empty one, for its configuration, database, keys and log
    """

    name = 'Keystone'

    def __init__(self, directory: pathlib.Path) -> None:
        super().__init__(directory)
        self.admin = User('admin', SECRETS.make('password of an admin'), 'admin')
        self._is_prepared = False

    @property
    def url(self) -> str:
        return f'{super().url}/v3'

    def kill(self) -> None:
        """Have it end at once; started again it is where and as it was."""
        assert self._process is not None
        self._process.kill()
        self.stop()

    @functools.cached_property
    def _client(self) -> '_Client':
        return _Client(self.url, self.admin)

    def register(self, service_type: str, url: str) -> None:
        """Have the catalog name one public endpoint for a service, whatever it named before.

        :param url: may have ``$(project_id)s`` in it, for the project that logs in
        """
        client = self._client
        for service in client.get('/services', type=service_type)['services']:
            client.delete(f'/services/{service["id"]}')
        service = client.post('/services', service={'type': service_type, 'name': service_type})
        endpoint = {
            'service_id': service['id'],
            'region_id': REGION,
            'interface': 'public',
            'url': url,
        }
        client.post('/endpoints', endpoint=endpoint)

    def add_region(self, region: str, **urls: str) -> None:
        """Have the catalog name endpoints of services in one more region, by their types."""
        client = self._client
        client.put(f'/regions/{region}', region={})
        for service_type, url in urls.items():
            service_id = self._find_or_make_service(service_type)
            for interface in ('internal', 'public'):
                endpoint = {
                    'service_id': service_id,
                    'region_id': region,
                    'interface': interface,
                    'url': url,
                }
                client.post('/endpoints', endpoint=endpoint)

    def _find_or_make_service(self, service_type: str) -> str:
        found = self._client.get('/services', type=service_type)['services']
        made = {'type': service_type, 'name': service_type}
        return str((found[0] if found else self._client.post('/services', service=made))['id'])

    def make_user(self, *roles: str, project: str | None = None, name: str | None = None) -> User:
        """Make a user with roles in a project, a new one unless named; and what is missing."""
        client = self._client
        unique = uuid.uuid4().hex
        password = SECRETS.make('password of a user')
        user = User(name or f'user-{unique}', password, project or f'project-{unique}')
        project_id = client.find_or_make('project', user.project)
        user_id = client.post('/users', user={'name': user.name, 'password': user.password})['id']
        for role in roles:
            role_id = client.find_or_make('role', role)
            client.put(f'/projects/{project_id}/users/{user_id}/roles/{role_id}')
        return user

    def disable(self, user: User) -> None:
        """Have Keystone take no password and no token of a user any more."""
        client = self._client
        user_id = client.find_or_make('user', user.name)
        client.patch(f'/users/{user_id}', user={'enabled': False})

    def make_admin_of_system(self, user: User) -> None:
        client = self._client
        user_id = client.find_or_make('user', user.name)
        client.put(f'/system/users/{user_id}/roles/{client.find_or_make("role", "admin")}')

    def project_id(self, user: User) -> str:
        return self._client.find_or_make('project', user.project)

    def token(self, user: User, scope: str = 'project') -> str:
        """Log in to the user's project, the ``system`` or ``unscoped``, and give the token."""
        return _log_in(self.url, user, scope)

    def revoke(self, token: str) -> None:
        """Have Keystone take a token no longer, as if its time were over."""
        self._client.delete('/auth/tokens', {'X-Subject-Token': token})

    def environment(self, user: User) -> dict[str, str]:
        """Give our environment variables, with those by which clients log in as a user."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith('OS_')}
        return {
            **ours,
            'OS_AUTH_URL': self.url,
            'OS_IDENTITY_API_VERSION': '3',
            'OS_USERNAME': user.name,
            'OS_PASSWORD': user.password,
            'OS_PROJECT_NAME': user.project,
            'OS_USER_DOMAIN_ID': 'default',
            'OS_PROJECT_DOMAIN_ID': 'default',
            'OS_REGION_NAME': REGION,
        }

    def _install(self) -> pathlib.Path:
        return ENVIRONMENT.ensure()

    def _prepare(self, home: pathlib.Path) -> None:
        """Make the configuration, the database, the keys of tokens and the administrator."""
        if self._is_prepared:
            return
        (self.directory / 'keystone.conf').write_text(_CONFIGURATION.format(data=self.directory))
        self._manage(home, 'db_sync')
        self._manage(
            home,
            'fernet_setup',
            f'--keystone-user={os.getuid()}',
            f'--keystone-group={os.getgid()}',
        )
        self._manage(
            home,
            'bootstrap',
            f'--bootstrap-username={self.admin.name}',
            f'--bootstrap-project-name={self.admin.project}',
            f'--bootstrap-region-id={REGION}',
            # The middleware of a service asks for the internal endpoint.
            f'--bootstrap-internal-url={self.url}',
            f'--bootstrap-public-url={self.url}',
            OS_BOOTSTRAP_PASSWORD=self.admin.password,
        )
        self._is_prepared = True

    def _manage(self, home: pathlib.Path, *arguments: str, **variables: str) -> None:
        command = [
            str(home / 'bin' / 'keystone-manage'),
            f'--config-file={self.directory}/keystone.conf',
            *arguments,
        ]
        self._run(command, f'keystone-manage {arguments[0]}', variables)

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home / 'bin' / 'python'), '-c', _SERVE, str(listener.fileno())]

    def _variables(self) -> Mapping[str, str]:
        return {'OS_KEYSTONE_CONFIG_DIR': str(self.directory)}


class _Client:
    """Keystone's REST API as a user sees it; whatever it refuses is an error."""

    def __init__(self, url: str, user: User) -> None:
        self._url = url
        self._headers = {'X-Auth-Token': _log_in(url, user, 'project')}

    def find_or_make(self, kind: str, name: str) -> str:
        """Give the id of the project, role or user of a name."""
        found = self.get(f'/{kind}s', name=name)[f'{kind}s']
        return str((found[0] if found else self.post(f'/{kind}s', **{kind: {'name': name}}))['id'])

    def get(self, path: str, **query: str) -> Any:
        return self._ask('GET', path, params=query).json()

    def post(self, path: str, **body: dict[str, Any]) -> Any:
        """Make one thing, the argument, and give it as it was made."""
        (kind,) = body
        return self._ask('POST', path, json=body).json()[kind]

    def put(self, path: str, **body: dict[str, Any]) -> None:
        self._ask('PUT', path, json=body or None)

    def patch(self, path: str, **body: dict[str, Any]) -> None:
        self._ask('PATCH', path, json=body)

    def delete(self, path: str, headers: Mapping[str, str] | None = None) -> None:
        self._ask('DELETE', path, headers=headers)

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **arguments: Any
    ) -> requests.Response:
        answer = requests.request(
            method,
            self._url + path,
            headers={**self._headers, **(headers or {})},
            timeout=30,
            **arguments,
        )
        answer.raise_for_status()
        return answer


def _log_in(url: str, user: User, scope: str) -> str:
    """Give a token for the user's project, the system or nothing."""
    domain = {'id': 'default'}
    scopes: dict[str, Any] = {
        'project': {'project': {'name': user.project, 'domain': domain}},
        'system': {'system': {'all': True}},
        'unscoped': 'unscoped',
    }
    login = {'name': user.name, 'password': user.password, 'domain': domain}
    body = {
        'identity': {'methods': ['password'], 'password': {'user': login}},
        'scope': scopes[scope],
    }
    answer = requests.post(f'{url}/auth/tokens', json={'auth': body}, timeout=30)
    answer.raise_for_status()
    return SECRETS.note(answer.headers['X-Subject-Token'], 'token of a user')
