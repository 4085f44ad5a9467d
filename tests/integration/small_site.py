# SPDX-License-Identifier: Apache-2.0
"""A small site under Keystone as its user sees it, to ask why a host is not done.

One API, one conductor and two computes, each a process of its own, on a MariaDB and a RabbitMQ;
reports and timeouts are short. Each part can be killed, cut off or configured wrongly.
"""

import contextlib
import dataclasses
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import pytest
import yaml

from nova_precache import conf as options, model
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from nova_precache.standalone import process
from tests import openstack
from tests.integration import keystone_site, link
from tests.integration.conftest import BIN, Changes
from tests.leaks import SECRETS
from tools import documentation
from tools.servers import databases
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS, wait_until, wait_until_frozen

API, CONDUCTOR = 'api', 'conductor'
CONTROL_PLANE = (CONDUCTOR, API)
ANY = '…'
_CLOUD = 'small'
_SHOW_WAIT = 'openstack precache show --wait "$request"'
# The names in the commands of the documentation.
_HOST = 'compute-17'
ACCOUNT = databases.Account('precache', ('precache',), SECRETS.make('password of the database'))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A row of the table "why is host X not done?" in the documentation.

    :ivar shown: the text, with ``ANY`` for what differs
    :ivar where: the command that shows it
    :ivar seconds: by when
    """

    case: str
    shown: str
    where: str
    seconds: float

    @property
    def pattern(self) -> re.Pattern[str]:
        parts = (r'\s+'.join(map(re.escape, each.split(' '))) for each in self.shown.split(ANY))
        return re.compile('.+?'.join(parts))


def answers() -> dict[str, list[Answer]]:
    """Read the table by case."""
    text = (documentation.ROOT / 'doc/source/troubleshooting.rst').read_text()
    _, _, table = text.partition('   * - Case\n')
    rows = re.split(r'^   \* - ', table.partition('\n\n')[0], flags=re.MULTILINE)[1:]
    found: dict[str, list[Answer]] = {}
    for row in rows:
        case, shown, where, seconds = (
            ' '.join(each.split()) for each in re.split(r'^     - ', row, flags=re.MULTILINE)
        )
        answer = Answer(case, shown.strip('`'), where.strip('`'), float(seconds))
        found.setdefault(case, []).append(answer)
    return found


class Gateway(keystone_site.Gateway):
    """A link to Glance that can also be slow, or pass nothing at all.

    :ivar chunk_seconds: how long each chunk of an image's data takes
    """

    def __init__(self, glance_url: str) -> None:
        super().__init__(glance_url)
        self.chunk_seconds = 0.0
        self._answers = threading.Event()
        self._answers.set()

    def hang(self) -> None:
        """Accept requests, and answer none until released."""
        self._answers.clear()

    def release(self) -> None:
        self.chunk_seconds = 0.0
        self._answers.set()
        super().release()

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        self._answers.wait()
        with contextlib.suppress(ConnectionError):  # the client may not have waited
            super().serve(handler)

    def _note(self, download: Any, count: int) -> None:
        super()._note(download, count)
        time.sleep(self.chunk_seconds)


@dataclasses.dataclass
class Site(keystone_site.Site):
    """The processes by name; each has a configuration file and a log."""

    gateway: Gateway
    rabbitmq: RabbitMQ = dataclasses.field(kw_only=True)
    database: databases.MariaDB = dataclasses.field(kw_only=True)
    links: Mapping[str, link.Link] = dataclasses.field(kw_only=True)
    forgotten: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All processes, in start order."""
        return (*CONTROL_PLANE, *(host.name for host in self.hosts))

    def set_up(self) -> None:
        for name in self.names:
            self.configure(name)
        database = session.connect(options.new(['--config-file', str(self._file(CONDUCTOR))]))
        schema.sync(database)
        inventory.Inventory(database).create_cell('cell1', self.cell_broker)
        database.dispose()
        self._write_cloud()
        self.mend()

    def _write_cloud(self) -> None:
        base = f'http://127.0.0.1:{self.port}'
        cloud = {
            'auth': {
                'auth_url': self.keystone.url,
                'username': self.admin.name,
                'password': self.admin.password,
                'project_name': self.admin.project,
                'user_domain_id': 'default',
                'project_domain_id': 'default',
            },
            'identity_api_version': '3',
            'image_endpoint_override': self.glance.url,
            'image_precache_endpoint_override': f'{base}/v1',
            'compute_endpoint_override': f'{base}/v2.1',
        }
        (self.directory / 'clouds.yaml').write_text(yaml.safe_dump({'clouds': {_CLOUD: cloud}}))

    # Processes

    def configure(self, name: str, changes: Changes | None = None) -> None:
        """Write the file of a process, with some options changed."""
        is_control = name in CONTROL_PLANE
        lines = [
            '[DEFAULT]',
            f'host = {name}',
            f'state_path = {self.directory / name}',
            f'transport_url = {self.api_broker if is_control else self.cell_broker}',
            _SHORT,
            self._control() if is_control else self._compute(),
        ]
        for group, values in (changes or {}).items():  # the last one of an option counts
            lines += [f'[{group}]', *(f'{option} = {value}' for option, value in values.items())]
        self._file(name).write_text('\n'.join(lines))

    def _control(self) -> str:
        return (
            f'[api]\nbind_port = {self.port}\n'
            f'[database]\nconnection = {self.database_url()}\n'
            f'[glance]\nendpoint_override = {self.gateway.url}\n'
            f'{self.keystone.credentials(self.image_user)}'
            f'{self.keystone.authtoken(self.service_user)}'
        )

    def _compute(self) -> str:
        return f'[glance]\nallowed_endpoints = {self.gateway.url}\n'

    def database_url(self) -> str:
        return self.database.account_url(ACCOUNT, ACCOUNT.databases[0])

    def start(self, name: str) -> None:
        kind = name if name in CONTROL_PLANE else 'compute'
        command = [str(BIN / f'nova-precache-{kind}'), '--config-file', str(self._file(name))]
        with SECRETS.expect(self._log(name)).open('ab') as log:
            self.processes[name] = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'), stdout=log, stderr=log
            )

    def kill(self, name: str) -> None:
        """Kill a process at once, as a lost machine would."""
        killed = self.processes.pop(name)
        killed.kill()
        killed.wait()

    def stop(self, name: str) -> None:
        """Stop a process that serves as an operator would."""
        stopped = self.processes.pop(name)
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait(TIMEOUT_SECONDS) == 0, name

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Freeze a process."""
        self.processes[name].send_signal(signal.SIGSTOP)
        try:
            wait_until_frozen(self.processes[name].pid)
            yield
        finally:
            self.processes[name].send_signal(signal.SIGCONT)

    def restart(self, name: str, changes: Changes) -> float:
        """Restart a process with options changed, until the test ends; return when it began."""
        if name in self.processes:
            self.kill(name)
        self.configure(name, changes)
        self.start(name)
        return time.monotonic()

    def tear_down(self) -> None:
        """Stop what runs as an operator would; some processes were to end by themselves."""
        for name, each in list(self.processes.items()):
            if each.poll() is not None:
                del self.processes[name]
        super().tear_down()

    def mend(self) -> None:
        """Restore the running state that each test expects."""
        self.gateway.release()
        for broker in self.links.values():
            broker.restore()
        for name, each in list(self.processes.items()):
            written = self._file(name).read_text()
            self.configure(name)
            if each.poll() is not None:
                del self.processes[name]
            elif self._file(name).read_text() != written:
                self.kill(name)
        self.forgotten = {name: len(self._whole_log(name)) for name in self.names}
        started = [name for name in self.names if name not in self.processes]
        for name in started:
            self.start(name)
        for name in started:
            self.wait_until_serves(name)
        wait_until(self._all_are_up, f'all hosts are up; logs in {self.directory}')
        self._cancel_requests()
        self.forgotten = {name: len(self._whole_log(name)) for name in self.names}

    def _cancel_requests(self) -> None:
        """End the requests of earlier tests, which would hold the slots."""
        token = self.token(self.admin)

        def active() -> list[str]:
            found = self.ask(token, 'GET', '/v1/requests').json()['requests']
            return [each['id'] for each in found if each['status'] in model.REQUEST_ACTIVE]

        for request_id in active():
            self.ask(token, 'POST', f'/v1/requests/{request_id}/action', {'cancel': None})
        wait_until(lambda: not active(), 'every request has ended')

    def wait_until_serves(self, name: str) -> None:
        """Wait until a process that has been started in this test serves."""
        serves = {CONDUCTOR: ' runs', API: ''}.get(name, 'is registered and serves')
        wait_until(lambda: serves in self.log(name), f'{name} logs "{serves}"')
        if name == API:
            wait_until(self._answers, f'the API answers; logs in {self.directory}')

    def _all_are_up(self) -> bool:
        found = self.ask(self.token(self.admin), 'GET', '/v1/hosts').json()
        up = {host['host'] for host in found.get('hosts', ()) if host['status'] == 'up'}
        return up == {host.name for host in self.hosts}

    def log(self, name: str) -> str:
        """Return what a process has logged since the test began."""
        return self._whole_log(name)[self.forgotten.get(name, 0) :]

    def _whole_log(self, name: str) -> str:
        return self._log(name).read_text() if self._log(name).exists() else ''

    def _log(self, name: str) -> pathlib.Path:
        return self.directory / f'{name}.log'

    def _file(self, name: str) -> pathlib.Path:
        return self.directory / f'{name}.conf'


# Only the control plane uses most of these.
_SHORT = """\
report_interval = 1
service_down_time = 8
rpc_response_timeout = 5
[conductor]
claim_lease_seconds = 3
poll_interval_seconds = 0.5
heartbeat_write_interval_seconds = 0.5
cell_refresh_seconds = 1
rpc_connect_retries = 0
stop_timeout_seconds = 1
[image_cache]
precache_concurrency = 2
precache_max_attempts = 3
retry_delay_seconds = 3
retry_max_delay_seconds = 3
reserved_disk_bytes = 0
[glance]
connect_timeout_seconds = 2
read_timeout_seconds = 20
num_retries = 0
[oslo_messaging_rabbit]
heartbeat_timeout_threshold = 6
rabbit_interval_max = 1
kombu_reconnect_delay = 0.1"""


class Waiting:
    """``openstack precache show --wait`` as a process of its own, and its lines as they come."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._reader.start()
        wait_until(lambda: self.lines, 'the command follows the request')
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.lines.append(line)


class User:
    """An administrator of the site with the ``openstack`` command, and their questions."""

    def __init__(self, site: Site, capture: pytest.CaptureFixture[str]) -> None:
        self.site = site
        self._openstack = openstack.OpenStack(_CLOUD, capture)
        self._environment = {'OS_CLIENT_CONFIG_FILE': str(site.directory / 'clouds.yaml')}
        self._waiting: Waiting | None = None
        self.request_id = ''
        self.measured: list[tuple[Answer, float]] = []

    def run(self, *arguments: str) -> openstack.Said:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            said = self._openstack(*arguments)
        SECRETS.look_into(f'{said.out}{said.err}', f'the output of openstack {arguments}')
        return said

    def create(self, image_id: str, *arguments: str, host: str = 'host1') -> str:
        """Request an image for one host, and return the id of the request."""
        command = ('precache', 'create', '--host', host, *arguments, image_id, '-f', 'json')
        self.request_id = str(self.run(*command).json['id'])
        return self.request_id

    def upload(self, size_bytes: int = 1024) -> str:
        return self.site.upload(self.site.admin, 'public', size_bytes)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Follow the request with a command beside the test."""
        command = [
            *(openstack.COMMAND, '--os-cloud', _CLOUD),
            *('precache', 'show', '--wait', self.request_id),
        ]
        environment = {**process_environment(), **self._environment}
        with Waiting(command, environment) as self._waiting:
            yield
        SECRETS.look_into(''.join(self._waiting.lines), 'the output of show --wait')
        self._waiting = None

    def assert_shown(self, case: str, since: float, host: str = 'host1') -> None:
        """Check each row of a case: a command that was started in time shows its text.

        :param since: when the fault began
        """
        for answer in answers()[case]:

            def found_at(answer: Answer = answer) -> float | None:
                asked_at = time.monotonic()
                seen = self._look(answer.where, host)
                return asked_at if answer.pattern.search(seen) else None

            left = answer.seconds - (time.monotonic() - since)
            seconds = wait_until(found_at, str(answer), left) - since
            self.measured.append((answer, seconds))
            assert seconds <= answer.seconds, answer

    def _look(self, where: str, host: str) -> str:
        """Return what a command of the documentation shows now."""
        if where == _SHOW_WAIT:
            assert self._waiting is not None
            return ''.join(self._waiting.lines)
        words = where.replace('"$request"', self.request_id).replace(_HOST, host).split()
        if words[0] == 'journalctl':
            unit = words[words.index('--unit') + 1].removeprefix('nova-precache-')
            return self.site.log(host if unit == 'compute' else unit)
        said = self.run(*words[1:], '-f', 'json')
        return _flat(said.out) + said.err


def process_environment() -> dict[str, str]:
    """Return our environment without variables of the clients."""
    return {name: value for name, value in os.environ.items() if not name.startswith('OS_')}


def _flat(text: str) -> str:
    """Return the values of JSON as lines, without its quoting."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    rows = found if isinstance(found, list) else [found]
    return '\n'.join(' '.join(str(value) for value in row.values()) for row in rows)
