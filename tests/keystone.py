# SPDX-License-Identifier: Apache-2.0
"""A real Keystone as a child process, for clients that log in and read a catalog.

It keeps users and endpoints in a directory of its own and forgets nothing while it
runs. Run as a module, ``--build`` prepares its environment and ends.
"""

import argparse
import dataclasses
import logging
import os
import pathlib
import socket
import subprocess
import sys
import uuid
from types import TracebackType
from typing import Any, Self

import requests

from nova_precache import exception
from nova_precache.standalone import environment, process

VERSION = '30.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'keystone-{VERSION}', requirements=(f'keystone=={VERSION}', 'waitress~=3.0')
)
HOST = '127.0.0.1'
REGION = 'RegionOne'
START_SECONDS = 60
STOP_SECONDS = 15

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
"""


class KeystoneFailed(exception.PrecacheError):
    """Keystone could not be set up or started; the message has the last lines of its log."""


@dataclasses.dataclass(frozen=True)
class User:
    """Who logs in, and to which project; all are of the default domain."""

    name: str
    password: str
    project: str


class KeystoneServer:
    """A Keystone on a free port of the loopback, with its administrator and no services.

    :param directory: an empty one, for its configuration, database, keys and log
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory.resolve()
        self.log = self.directory / 'keystone.log'
        self.admin = User('admin', uuid.uuid4().hex, 'admin')
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f'http://{HOST}:{self._port}/v3'

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Set Keystone up and start it, and return when it answers.

        :raises KeystoneFailed: a command failed, or it did not come up
        :raises nova_precache.standalone.environment.EnvironmentFailed: it is not installed
            and could not be
        """
        home = ENVIRONMENT.ensure()
        # Taken here, so that nobody else can between choosing the port and using it.
        with socket.create_server((HOST, 0), backlog=128) as listener:
            self._port = listener.getsockname()[1]
            self._set_up(home)
            self._process = self._spawn(home, listener)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Keystone, with force when it takes too long; nothing when it does not run."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def register(self, service_type: str, url: str) -> None:
        """Have the catalog name one public endpoint for a service, whatever it named before.

        :param url: may have ``$(project_id)s`` in it, for the project that logs in
        """
        client = _Client(self.url, self.admin)
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

    def make_user(self, role: str) -> User:
        """Make a user with one of Keystone's own roles in a new project."""
        client = _Client(self.url, self.admin)
        user = User(f'user-{uuid.uuid4().hex}', uuid.uuid4().hex, f'project-{uuid.uuid4().hex}')
        project_id = client.post('/projects', project={'name': user.project})['id']
        user_id = client.post('/users', user={'name': user.name, 'password': user.password})['id']
        (found,) = client.get('/roles', name=role)['roles']
        client.put(f'/projects/{project_id}/users/{user_id}/roles/{found["id"]}')
        return user

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

    def _set_up(self, home: pathlib.Path) -> None:
        """Make the configuration, the database, the keys of tokens and the administrator."""
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
            f'--bootstrap-password={self.admin.password}',
            f'--bootstrap-project-name={self.admin.project}',
            f'--bootstrap-region-id={REGION}',
            f'--bootstrap-public-url={self.url}',
        )

    def _manage(self, home: pathlib.Path, *arguments: str) -> None:
        command = [
            str(home / 'bin' / 'keystone-manage'),
            f'--config-file={self.directory}/keystone.conf',
            *arguments,
        ]
        with self.log.open('ab') as log:
            result = subprocess.run(
                process.dies_with_parent(command, 'KILL'),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if result.returncode != 0:
            raise KeystoneFailed(
                f'keystone-manage {arguments[0]} failed:\n{process.tail(self.log)}'
            )

    def _spawn(self, home: pathlib.Path, listener: socket.socket) -> subprocess.Popen[bytes]:
        command = [str(home / 'bin' / 'python'), '-c', _SERVE, str(listener.fileno())]
        with self.log.open('ab') as log:
            # A session of its own: a Ctrl-C in the terminal reaches the tests, which
            # stop Keystone last.
            return subprocess.Popen(
                process.dies_with_parent(command, 'TERM'),
                env={**os.environ, 'OS_KEYSTONE_CONFIG_DIR': str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def _wait_until_it_answers(self) -> None:
        """Ask once: the port is open already, and only Keystone holds it now."""
        try:
            requests.get(self.url, timeout=START_SECONDS).raise_for_status()
        except requests.RequestException as exc:
            raise KeystoneFailed(f'Keystone did not come up:\n{process.tail(self.log)}') from exc


class _Client:
    """Keystone's REST API as a user sees it; whatever it refuses is an error."""

    def __init__(self, url: str, user: User) -> None:
        self._url = url
        domain = {'id': 'default'}
        login = {'name': user.name, 'password': user.password, 'domain': domain}
        body = {
            'identity': {'methods': ['password'], 'password': {'user': login}},
            'scope': {'project': {'name': user.project, 'domain': domain}},
        }
        answer = requests.post(f'{url}/auth/tokens', json={'auth': body}, timeout=30)
        answer.raise_for_status()
        self._headers = {'X-Auth-Token': answer.headers['X-Subject-Token']}

    def get(self, path: str, **query: str) -> Any:
        return self._ask('GET', path, params=query).json()

    def post(self, path: str, **body: dict[str, Any]) -> Any:
        """Make one thing, the argument, and give it as it was made."""
        (kind,) = body
        return self._ask('POST', path, json=body).json()[kind]

    def put(self, path: str) -> None:
        self._ask('PUT', path)

    def delete(self, path: str) -> None:
        self._ask('DELETE', path)

    def _ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        answer = requests.request(
            method, self._url + path, headers=self._headers, timeout=30, **arguments
        )
        answer.raise_for_status()
        return answer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m tests.keystone')
    parser.add_argument(
        '--build', action='store_true', required=True, help='build the environment of Keystone'
    )
    parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        ENVIRONMENT.ensure()
    except environment.EnvironmentFailed as exc:
        sys.exit(str(exc))


if __name__ == '__main__':
    main()
