# SPDX-License-Identifier: Apache-2.0
"""A real Keystone as a child process, for clients that log in and read a catalog.

It keeps users and endpoints in its own directory, also while it is stopped.
"""

import dataclasses
import functools
import os
import pathlib
import secrets
import socket
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import requests

from nova_precache.standalone import environment
from tools.waiting import TIMEOUT_SECONDS

VERSION = '30.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'keystone-{VERSION}', requirements=(f'keystone=={VERSION}', 'waitress~=3.0')
)
REGION = 'RegionOne'

# Keystone parses the arguments of its program, so none may be left.
_SERVE = """\
import socket, sys
listener = socket.socket(fileno=int(sys.argv.pop()))
import waitress
from keystone.wsgi.api import application
waitress.serve(application, sockets=[listener])
"""
# Receipts are for logins in several steps, which are not used. Without this section Keystone
# creates their keys in /etc/keystone.
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
_CREDENTIALS = """
auth_type = password
auth_url = {url}
username = {user.name}
password = {user.password}
project_name = {user.project}
user_domain_id = default
project_domain_id = default
region_name = {region}
"""
_AUTHTOKEN = """
[keystone_authtoken]
www_authenticate_uri = {url}
service_token_roles_required = true
token_cache_time = {token_cache_seconds}"""


@dataclasses.dataclass(frozen=True)
class User:
    """A user and the project to log in to; all are in the default domain."""

    name: str
    password: str
    project: str


class KeystoneServer(environment.PythonServer):
    """A Keystone on a free port of the loopback, with its administrator and no services.

    :param directory: an empty one, for its configuration, database, keys and log
    :param on_secret: called with each password and token and what it is
    """

    name = 'Keystone'
    python_environment = ENVIRONMENT

    def __init__(
        self,
        directory: pathlib.Path,
        on_secret: Callable[[str, str], object] = lambda secret, what: None,
    ) -> None:
        super().__init__(directory)
        self._on_secret = on_secret
        self.admin = User('admin', self._new_password('password of an admin'), 'admin')
        self._is_prepared = False

    @property
    def url(self) -> str:
        return f'{super().url}/v3'

    def kill(self) -> None:
        """Kill it; it keeps its data for the next start."""
        assert self._process is not None
        self._process.kill()
        self.stop()

    @functools.cached_property
    def _client(self) -> '_Client':
        return _Client(self.url, self.token(self.admin))

    def register(self, service_type: str, url: str) -> None:
        """Replace the endpoints of a service in the catalog by one public endpoint.

        :param url: may contain ``$(project_id)s``, for the project that logs in
        """
        client = self._client
        for service in client.get('/services', type=service_type)['services']:
            client.delete(f'/services/{service["id"]}')
        self._add_endpoint(self._find_or_make_service(service_type), REGION, 'public', url)

    def add_region(self, region: str, **urls: str) -> None:
        """Add a region to the catalog, with endpoints of services by their types."""
        self._client.put(f'/regions/{region}', region={})
        for service_type, url in urls.items():
            service_id = self._find_or_make_service(service_type)
            for interface in ('internal', 'public'):
                self._add_endpoint(service_id, region, interface, url)

    def _add_endpoint(self, service_id: str, region: str, interface: str, url: str) -> None:
        endpoint = {
            'service_id': service_id,
            'region_id': region,
            'interface': interface,
            'url': url,
        }
        self._client.post('/endpoints', endpoint=endpoint)

    def _find_or_make_service(self, service_type: str) -> str:
        found = self._client.get('/services', type=service_type)['services']
        made = {'type': service_type, 'name': service_type}
        return str((found[0] if found else self._client.post('/services', service=made))['id'])

    def make_user(self, *roles: str, project: str | None = None, name: str | None = None) -> User:
        """Create a user with roles in a project; create the project and the roles if missing.

        :param project: a new one if not given
        """
        client = self._client
        unique = uuid.uuid4().hex
        password = self._new_password('password of a user')
        user = User(name or f'user-{unique}', password, project or f'project-{unique}')
        project_id = client.find_or_make('project', user.project)
        user_id = client.post('/users', user={'name': user.name, 'password': user.password})['id']
        for role in roles:
            role_id = client.find_or_make('role', role)
            client.put(f'/projects/{project_id}/users/{user_id}/roles/{role_id}')
        return user

    def _new_password(self, what: str) -> str:
        password = secrets.token_hex(16)
        self._on_secret(password, what)
        return password

    def disable(self, user: User) -> None:
        """Disable a user; Keystone then refuses the user's password and tokens."""
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
        """Log in and return the token.

        :param scope: ``project``, ``system`` or ``unscoped``
        """
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
        answer = requests.post(
            f'{self.url}/auth/tokens', json={'auth': body}, timeout=TIMEOUT_SECONDS
        )
        answer.raise_for_status()
        token = answer.headers['X-Subject-Token']
        self._on_secret(token, 'token of a user')
        return token

    def revoke(self, token: str) -> None:
        """Revoke a token."""
        self._client.delete('/auth/tokens', {'X-Subject-Token': token})

    def variables(self, user: User) -> dict[str, str]:
        """Return our environment variables, with those by which clients log in as a user."""
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

    def credentials(self, user: User) -> str:
        """Return the options by which a service logs in as a user."""
        return _CREDENTIALS.format(url=self.url, user=user, region=REGION)

    def authtoken(self, user: User, token_cache_seconds: int = -1) -> str:
        """Return the section by which a service validates tokens, as a user.

        :param token_cache_seconds: -1 to validate each use, so that a revoked token is refused
            at once
        """
        section = _AUTHTOKEN.format(url=self.url, token_cache_seconds=token_cache_seconds)
        return section + self.credentials(user)

    def _prepare(self, home: pathlib.Path) -> None:
        """Write the configuration; create the database, the token keys and the administrator."""
        if self._is_prepared:
            return
        configuration = self.directory / 'keystone.conf'
        configuration.write_text(_CONFIGURATION.format(data=self.directory))
        self._manage(home, 'keystone-manage', configuration, 'db_sync')
        self._manage(
            home,
            'keystone-manage',
            configuration,
            'fernet_setup',
            f'--keystone-user={os.getuid()}',
            f'--keystone-group={os.getgid()}',
        )
        self._manage(
            home,
            'keystone-manage',
            configuration,
            'bootstrap',
            f'--bootstrap-username={self.admin.name}',
            f'--bootstrap-project-name={self.admin.project}',
            f'--bootstrap-region-id={REGION}',
            # The middleware of a service uses the internal endpoint.
            f'--bootstrap-internal-url={self.url}',
            f'--bootstrap-public-url={self.url}',
            OS_BOOTSTRAP_PASSWORD=self.admin.password,
        )
        self._is_prepared = True

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [str(home / 'bin' / 'python'), '-c', _SERVE, str(listener.fileno())]

    def _variables(self) -> Mapping[str, str]:
        return {'OS_KEYSTONE_CONFIG_DIR': str(self.directory)}


class _Client:
    """Keystone's REST API as the owner of a token sees it; each refusal is an error."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {'X-Auth-Token': token}

    def find_or_make(self, kind: str, name: str) -> str:
        """Return the id of a project, role or user by its name."""
        found = self.get(f'/{kind}s', name=name)[f'{kind}s']
        return str((found[0] if found else self.post(f'/{kind}s', **{kind: {'name': name}}))['id'])

    def get(self, path: str, **query: str) -> Any:
        return self._ask('GET', path, params=query).json()

    def post(self, path: str, **body: dict[str, Any]) -> Any:
        """Create a resource from the one argument, and return it as created."""
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
            timeout=TIMEOUT_SECONDS,
            **arguments,
        )
        answer.raise_for_status()
        return answer
