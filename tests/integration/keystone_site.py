# SPDX-License-Identifier: Apache-2.0
"""An operator's site: Keystone's catalog lists Glance and our APIs, and both use Keystone.

The API, the conductor and two computes are processes of their own. Credentials are in
the file of the control plane only.
"""

import dataclasses
import http.server
import os
import pathlib
import signal
import subprocess
import sys
import uuid
from typing import Any

import requests

from nova_precache import model
from nova_precache.standalone import process
from tests import gateway as site_link, glance_policy, service, wsgi
from tests.leaks import SECRETS
from tests.service import wait_until
from tools.servers import keystone as keystone_server
from tools.servers.glance import GlanceUnderKeystone
from tools.waiting import TIMEOUT_SECONDS

BIN = pathlib.Path(sys.executable).parent
# The operator's own role in the policy file below.
PRECACHER = 'precacher'

_POLICY = f"""\
"os_compute_api:os-aggregates:index": "role:{PRECACHER} or rule:context_is_admin"
"os_compute_api:os-aggregates:show": "role:{PRECACHER} or rule:context_is_admin"
"compute:aggregates:images": "role:{PRECACHER} or rule:context_is_admin"
"os_compute_api:servers:index": "rule:project_reader_or_admin"
"""


class Gateway(site_link.Gateway):
    """A link to Glance that records the tokens with which an image was requested."""

    def __init__(self, glance_url: str) -> None:
        super().__init__(glance_url)
        self.tokens: list[tuple[str, str]] = []

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if token := handler.headers.get('X-Auth-Token'):
            SECRETS.note(token, 'token on its way to Glance')
            self.tokens.append((handler.path, token))
        super().serve(handler)

    def download_tokens(self, image_id: str) -> list[str]:
        """Return the tokens of the downloads of an image, in order."""
        return [token for path, token in self.tokens if path == f'/v2/images/{image_id}/file']


@dataclasses.dataclass
class Site:
    """The processes of the site, and the actions of its users."""

    directory: pathlib.Path
    keystone: keystone_server.KeystoneServer
    glance: GlanceUnderKeystone
    gateway: Gateway
    api_broker: str
    cell_broker: str
    port: int
    admin: keystone_server.User = dataclasses.field(init=False)
    service_user: keystone_server.User = dataclasses.field(init=False)
    image_user: keystone_server.User = dataclasses.field(init=False)
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)
    _tokens: dict[tuple[keystone_server.User, str], str] = dataclasses.field(default_factory=dict)
    _passwords: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        self.admin = self.user('admin')
        self.service_user = self.user('service', project='service')
        self.image_user = self.user(glance_policy.ROLE, project='service')

    @property
    def compute_url(self) -> str:
        return f'http://127.0.0.1:{self.port}/v2.1'

    @property
    def hosts(self) -> tuple[service.Host, ...]:
        names = ('host1', 'host2')
        return tuple(
            service.Host(name, 'cell1', str(self.directory / name / 'instances')) for name in names
        )

    # Processes

    def set_up(self) -> None:
        """Write the configuration, create the database and the cell, start everything."""
        self.register()
        (self.directory / 'policy.yaml').write_text(_POLICY)
        self._write('control', self.api_broker, self._control())
        for host in self.hosts:
            self._write(
                host.name,
                self.cell_broker,
                f'[glance]\nallowed_endpoints = {self.gateway.url}/v2,{self.glance.url}\n'
                '[image_cache]\nreserved_disk_bytes = 0\n',
            )
        self._manage('db', 'sync')
        self._manage('cell', 'create', '--name', 'cell1', '--transport-url', self.cell_broker)
        self._start('conductor', 'control')
        self._start('api', 'control')
        # An agent waits long for the answer to a registration that no conductor hears.
        wait_until(lambda: ' runs' in self.logs()['conductor-control'], 'the conductor runs')
        for host in self.hosts:
            self._start('compute', host.name)
        self._wait_until_ready()

    def register(self) -> None:
        """Register Glance and our two APIs in the catalog."""
        self.keystone.register('image', self.gateway.url)
        self.keystone.register('compute', self.compute_url)
        self.keystone.register('image-precache', f'http://127.0.0.1:{self.port}/v1')

    def tear_down(self) -> None:
        """Stop everything as an operator would; fail if a process does not stop."""
        for each in self.processes.values():
            each.send_signal(signal.SIGTERM)
        statuses = {name: each.wait(TIMEOUT_SECONDS) for name, each in self.processes.items()}
        assert set(statuses.values()) <= {0}, statuses

    def secrets(self) -> set[str]:
        """Return every password and token in use."""
        in_use = {token for _, token in self.gateway.tokens}
        return self._passwords | set(self._tokens.values()) | in_use

    def logs(self) -> dict[str, str]:
        return {path.stem: path.read_text() for path in self.directory.glob('*.log')}

    def _control(self) -> str:
        return (
            '[conductor]\npoll_interval_seconds = 0.5\nheartbeat_write_interval_seconds = 0.5\n'
            'pin_interval_seconds = 1\n'
            f'[database]\nconnection = sqlite:///{self.directory}/precache.sqlite\n'
            f'[glance]\n{self.keystone.credentials(self.image_user)}'
            f'[oslo_policy]\npolicy_file = {self.directory}/policy.yaml\n'
            + self.keystone.authtoken(self.service_user)
        )

    def _write(self, name: str, broker: str, options: str) -> None:
        (self.directory / f'{name}.conf').write_text(
            f'[DEFAULT]\nhost = {name}\nstate_path = {self.directory / name}\n'
            f'transport_url = {broker}\nreport_interval = 1\nrpc_response_timeout = 20\n'
            # Log everything, the libraries too.
            f'debug = true\ndefault_log_levels = root=DEBUG\n{options}'
            '[oslo_messaging_notifications]\ndriver = log\n'
        )

    def _manage(self, *arguments: str) -> str:
        command = [BIN / 'nova-precache-manage', '--config-file', self.directory / 'control.conf']
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        assert SECRETS.look_at(done).returncode == 0, done.stderr
        return done.stdout

    def _start(self, kind: str, name: str) -> None:
        configuration = self.directory / f'{name}.conf'
        command = [str(BIN / f'nova-precache-{kind}'), '--config-file', str(configuration)]
        environment = None
        if kind == 'api':
            command = wsgi.uwsgi(self.directory, f'127.0.0.1:{self.port}')
            environment = wsgi.environment(configuration)
        with SECRETS.expect(self.directory / f'{kind}-{name}.log').open('ab') as log:
            self.processes[f'{kind}-{name}'] = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'),
                stdout=log,
                stderr=log,
                env=environment,
            )

    def _wait_until_ready(self) -> None:
        wait_until(self._answers, f'the API answers; logs in {self.directory}')
        for host in self.hosts:
            log = self.directory / f'compute-{host.name}.log'
            serves = f'Host {host.name} is registered and serves'
            wait_until(lambda log=log, serves=serves: serves in log.read_text(), serves)

    def _answers(self) -> bool:
        try:
            return requests.get(self.compute_url, timeout=TIMEOUT_SECONDS).ok
        except requests.ConnectionError:
            return False

    # Actions of users

    def user(self, *roles: str, project: str | None = None) -> keystone_server.User:
        user = self.keystone.make_user(*roles, project=project)
        self._passwords.add(user.password)
        return user

    def token(self, user: keystone_server.User, scope: str = 'project') -> str:
        """Return a token, logging in once for each user and scope."""
        if (user, scope) not in self._tokens:
            self._tokens[user, scope] = self.keystone.token(user, scope)
        return self._tokens[user, scope]

    def ask(
        self,
        token: str | None,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> requests.Response:
        """Send a request to the API; ``path`` starts with /v2.1 or /v1."""
        sent = {'OpenStack-API-Version': 'compute 2.81', **(headers or {})}
        if token is not None:
            sent['X-Auth-Token'] = token
        url = f'http://127.0.0.1:{self.port}{path}'
        answer = requests.request(method, url, json=body, headers=sent, timeout=TIMEOUT_SECONDS)
        SECRETS.look_into(f'{answer.headers}{answer.text}', f'the answer to {method} {path}')
        return answer

    def aggregate(self, name: str, *hosts: service.Host) -> int:
        token = self.token(self.admin)
        body = {'aggregate': {'name': name}}
        made = self.ask(token, 'POST', '/v2.1/os-aggregates', body).json()['aggregate']
        for host in hosts:
            action = {'add_host': {'host': host.name}}
            answer = self.ask(token, 'POST', f'/v2.1/os-aggregates/{made["id"]}/action', action)
            answer.raise_for_status()
        return int(made['id'])

    def cache(
        self,
        token: str,
        aggregate_id: int,
        image_id: str,
        headers: dict[str, str] | None = None,
    ) -> requests.Response:
        body = {'cache': [{'id': image_id}]}
        path = f'/v2.1/os-aggregates/{aggregate_id}/images'
        return self.ask(token, 'POST', path, body, headers)

    def upload(self, user: keystone_server.User, visibility: str, size_bytes: int = 1024) -> str:
        """Upload an image to Glance as a user, and return its id."""
        headers = {'X-Auth-Token': self.token(user)}
        image_id = str(uuid.uuid4())
        description = {
            'id': image_id,
            'name': f'image-{image_id}',
            'visibility': visibility,
            'container_format': 'bare',
            'disk_format': 'raw',
        }
        images = f'{self.glance.url}/v2/images'
        requests.post(
            images, json=description, headers=headers, timeout=TIMEOUT_SECONDS
        ).raise_for_status()
        requests.put(
            f'{images}/{image_id}/file',
            data=os.urandom(size_bytes),
            headers={**headers, 'Content-Type': 'application/octet-stream'},
            timeout=TIMEOUT_SECONDS,
        ).raise_for_status()
        return image_id

    def requests_for(self, image_id: str) -> list[dict[str, Any]]:
        answer = self.ask(self.token(self.admin), 'GET', '/v1/requests')
        return [each for each in answer.json()['requests'] if each['images'] == [image_id]]

    def outcome(self, image_id: str) -> dict[str, int]:
        """Wait until the only request for an image has ended, and count its tasks by status."""

        def ended() -> dict[str, Any] | None:
            (request,) = self.requests_for(image_id)
            return None if request['status'] in model.REQUEST_ACTIVE else request

        return dict(wait_until(ended, f'the request for {image_id} ended')['counts'])

    def tasks(self, image_id: str) -> list[dict[str, Any]]:
        (request,) = self.requests_for(image_id)
        path = f'/v1/requests/{request["id"]}/tasks'
        return list(self.ask(self.token(self.admin), 'GET', path).json()['tasks'])


class Commands:
    """The unmodified commands of one user, who logs in with name and password."""

    def __init__(self, site: Site, user: keystone_server.User) -> None:
        self._site = site
        self._environment = site.keystone.variables(user)

    def catalog_names(self, suffix: str) -> None:
        """Change the catalog's URL of compute: append a suffix."""
        self._site.keystone.register('compute', self._site.compute_url + suffix)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            [BIN / command[0], *command[1:]],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return SECRETS.look_at(ended)

    def output(self, *command: str) -> str:
        """Run a command, which must succeed, and return its output."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, *command: str) -> list[dict[str, str]]:
        """Run a command that prints a table among other things, and return its rows."""
        lines = [line for line in self.output(*command).splitlines() if line.startswith('|')]
        names, *rows = [[cell.strip() for cell in line[1:-1].split('|')] for line in lines]
        return [dict(zip(names, row, strict=True)) for row in rows]
