# SPDX-License-Identifier: Apache-2.0
"""The service as processes of their own over a real RabbitMQ, a virtual host for each cell."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import requests

from nova_precache import conf as options
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session as db_session
from nova_precache.standalone import glance as glance_server, process
from tests import gateway as site_link, glance_policy, nova_cloud, service as doors
from tests.conftest import require_environment
from tests.integration import keystone_site, link
from tests.leaks import SECRETS
from tools.servers import keystone as keystone_server, nova
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

BIN = pathlib.Path(sys.executable).parent
CELLS = ('cell1', 'cell2')
CONDUCTORS = ('conductor1', 'conductor2')
API = 'api'
REPORT_SECONDS = 1

Changes = Mapping[str, Mapping[str, object]]

# No claim expires, not even those of a conductor on a busy machine.
LONG_LEASE: Changes = {'conductor': {'claim_lease_seconds': 60}}


# py-amqp leaves to the collector the socket of a connection that a broker did not complete, or on
# which it cancelled a consumer while it was closed. It may be collected in any later test, or after
# the last one.
_LEFT_SOCKET = r'Exception ignored in. <socket\.socket'
LEFT_SOCKET = pytest.mark.filterwarnings(
    f'ignore:{_LEFT_SOCKET}:pytest.PytestUnraisableExceptionWarning'
)


def pytest_unconfigure() -> None:
    """Ignore left sockets when pytest collects for the last time, which is next."""
    warnings.filterwarnings('ignore', _LEFT_SOCKET, pytest.PytestUnraisableExceptionWarning)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the deployment: tools/run-tests.sh runs them beside the others."""
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent):
            item.add_marker(LEFT_SOCKET)
        if whole_deployment.__name__ in getattr(item, 'fixturenames', ()):
            item.add_marker('deployment')


@dataclasses.dataclass
class Deployment:
    """An API, two conductors and a compute for each host, each with its own configuration file.

    Every broker (a virtual host) is reached through a link, which a test can cut.
    """

    directory: pathlib.Path
    gateway: site_link.Gateway
    rabbitmq: RabbitMQ
    free_port: Callable[[], int]
    urls: dict[str, str] = dataclasses.field(default_factory=dict)
    links: dict[str, link.Link] = dataclasses.field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = dataclasses.field(default_factory=dict)
    forgotten: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.api_port = self.free_port()

    @property
    def service(self) -> doors.Service:
        base = f'http://127.0.0.1:{self.api_port}'
        return doors.Service(f'{base}/v2.1', f'{base}/v1', self.hosts)

    @property
    def hosts(self) -> tuple[doors.Host, ...]:
        return tuple(
            doors.Host(f'{cell}-host{n}', cell, str(self.directory / f'{cell}-host{n}/instances'))
            for cell in CELLS
            for n in (1, 2)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All processes, in start order."""
        return (*CONDUCTORS, API, *(host.name for host in self.hosts))

    def set_up(self) -> None:
        """Write the configuration, create the database and the cells, start everything."""
        for broker in (API, *CELLS):
            self.urls[broker], self.links[broker] = self._connect(self.rabbitmq.make_vhost())
        for name in self.names:
            self.configure(name)
        database = self.connect_database()
        schema.sync(database)
        for cell in CELLS:
            inventory.Inventory(database).create_cell(cell, self.urls[cell])
        database.dispose()
        for name in (*CONDUCTORS, API):
            self.start(name)
        for name in CONDUCTORS:  # before the computes: unheard casts are repeated late
            self.wait_for_log(name, ' runs')
        for host in self.hosts:
            self.start(host.name)
        self.wait_until_hosts_are_up()

    def _connect(self, url: str) -> tuple[str, link.Link]:
        """Return the URL of a broker behind a link of its own."""
        opened = link.Link(self.free_port(), self.rabbitmq.port)
        opened.restore()
        return url.replace(f':{self.rabbitmq.port}/', f':{opened.port}/'), opened

    def connect_database(self, name: str = CONDUCTORS[0]) -> db_session.Database:
        """Open the database that a process is configured with."""
        arguments = ('--config-file', str(self.directory / f'{name}.conf'))
        return db_session.connect(options.new(arguments))

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Query the database directly, past all processes."""
        with contextlib.closing(sqlite3.connect(self.directory / 'precache.sqlite')) as database:
            rows = database.execute(sql, values).fetchall()
            database.commit()
            return rows

    def kind(self, name: str) -> str:
        """Return the command that a process runs."""
        if name == API:
            return 'api'
        return 'conductor' if name in CONDUCTORS else 'compute'

    def start(self, name: str, **environment: str) -> None:
        """Start a conductor, the API or the compute of a host."""
        command = [str(BIN / f'nova-precache-{self.kind(name)}'), '--config-file']
        command.append(str(self.directory / f'{name}.conf'))
        with SECRETS.expect(self.directory / f'{name}.log').open('ab') as log:
            self.processes[name] = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'),
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def kill(self, name: str) -> None:
        """Kill a process at once, as a lost machine would."""
        killed = self.processes.pop(name)
        killed.kill()
        killed.wait()

    def stop(self, *names: str) -> None:
        """Stop processes as an operator would; fail if one does not stop cleanly."""
        stopped = {name: self.processes.pop(name) for name in names}
        for each in stopped.values():
            each.send_signal(signal.SIGCONT)
            doors.wait_until(functools.partial(_can_stop, each), 'it has come to serve')
            each.send_signal(signal.SIGTERM)
        statuses = {name: each.wait(TIMEOUT_SECONDS) for name, each in stopped.items()}
        assert set(statuses.values()) <= {0}, statuses

    def _stop_running(self, names: Iterable[str]) -> None:
        self.stop(*(name for name in names if name in self.processes))

    def tear_down(self) -> None:
        try:
            self.stop(*self.processes)
        finally:
            for each in self.links.values():
                each.cut()

    def mend(self) -> None:
        """Restore the running state that each test expects; report a process that ended, once."""
        ended = {name: each.poll() for name, each in self.processes.items()}
        ended = {name: status for name, status in ended.items() if status is not None}
        for name in ended:
            del self.processes[name]
        assert not ended, f'{ended}; logs in {self.directory}'
        self.gateway.release()
        for broker in self.links.values():
            broker.restore()
        for each in self.processes.values():
            each.send_signal(signal.SIGCONT)
        for name in self.names:
            if name not in self.processes:
                self.start(name)
        self.wait_until_hosts_are_up()

    def log(self, name: str) -> str:
        """Return what a process has logged since the test began."""
        return self.whole_log(name)[self.forgotten.get(name, 0) :]

    def forget_logs(self) -> None:
        """Hide all log lines so far from the next test."""
        self.forgotten = {name: len(self.whole_log(name)) for name in self.names}

    def whole_log(self, name: str) -> str:
        return (self.directory / f'{name}.log').read_text()

    def wait_for_log(self, name: str, text: str) -> None:
        doors.wait_until(lambda: text in self.log(name), f'{name} logs "{text}"')

    def wait_until_hosts_are_up(self) -> None:
        """Wait until all have read their files and answer, and each host has just reported."""
        fresh = """
            SELECT host FROM agents
            WHERE seen_at > datetime('now', '-2 seconds') AND coalesce(stopped_at < started_at, 1)
        """

        def are_up() -> bool:
            ended = {name: each.poll() for name, each in self.processes.items()}
            assert set(ended.values()) == {None}, f'{ended}; logs in {self.directory}'
            if not all(map(_can_stop, self.processes.values())):
                return False
            return {host.name for host in self.hosts} <= {host for (host,) in self.query(fresh)}

        doors.wait_until(are_up, f'all hosts are up; logs in {self.directory}')
        doors.wait_until(self._answers, 'the API answers')

    def _answers(self) -> bool:
        try:
            return requests.get(f'http://127.0.0.1:{self.api_port}/', timeout=TIMEOUT_SECONDS).ok
        except requests.ConnectionError:
            return False

    def shows_hosts_up(self) -> bool:
        """Return whether all hosts are up in the database that the API uses."""
        if not self._answers():
            return False
        answer = requests.get(f'{self.service.precache_url}/hosts', timeout=TIMEOUT_SECONDS)
        hosts = answer.json()['hosts'] if answer.ok else []
        up = {each['host'] for each in hosts if each['status'] == 'up'}
        return {host.name for host in self.hosts} <= up

    def claimed_hosts(self) -> list[str]:
        found = self.query('SELECT host FROM claims WHERE conductor_id IS NOT NULL')
        return [host for (host,) in found]

    def epochs(self) -> dict[str, int]:
        return dict(self.query('SELECT host, epoch FROM claims'))

    def assert_tidy(self) -> None:
        """Check that nothing is claimed or counted, and that no host has a partial file.

        The counters of tasks are the sums over the tasks.
        """
        doors.wait_until(lambda: not self.claimed_hosts(), 'every claim was given back')
        counted = self.query("SELECT value FROM counters WHERE name = 'claimed_hosts'")
        assert counted == [(0,)]
        assert self.query('SELECT host, status FROM jobs WHERE active_key IS NOT NULL') == []
        assert self._counters() == self._sums()
        doors.wait_until(self._has_no_partials, 'every partial file was published or removed')

    def _counters(self) -> list[tuple[Any, ...]]:
        columns = 'request_id, status, tasks, bytes_done, bytes_total'
        return self.query(f'SELECT {columns} FROM task_counts WHERE tasks > 0 ORDER BY 1, 2')  # noqa: S608

    def _sums(self) -> list[tuple[Any, ...]]:
        """Return the same of the tasks, all of which have ended."""
        known = 'max(bytes_done, coalesce(bytes_total, bytes_done))'
        columns = f'request_id, status, count(*), sum(bytes_done), sum({known})'
        return self.query(f'SELECT {columns} FROM cache_tasks GROUP BY 1, 2 ORDER BY 1, 2')  # noqa: S608

    def _has_no_partials(self) -> bool:
        """Return whether every file is published or removed, also those awaiting confirmation."""
        return all(
            _BASE_FILE.fullmatch(name)
            for host in self.hosts
            if host.base_directory.exists()
            for name in host.base_files()
        )

    def assert_cached(self, image_id: str, data: bytes, hosts: Iterable[doors.Host]) -> None:
        """Check that the hosts have the image byte for byte."""
        for host in hosts:
            assert host.base_path(image_id).read_bytes() == data, host.name

    def conductor_of(self, conductor_id: str) -> str:
        """Return the name of the process of the conductor with this id."""
        return next(name for name in CONDUCTORS if conductor_id in self.whole_log(name))

    def other_conductor(self, name: str) -> str:
        return next(each for each in CONDUCTORS if each != name)

    def configure(self, name: str, changes: Changes | None = None) -> None:
        """Write the file of one process, with some options changed."""
        changes = changes or {}
        lines = []
        own = self._options(name)
        for group in {**own, **changes}:
            lines.append(f'[{group}]')
            wanted = {**own.get(group, {}), **changes.get(group, {})}
            lines += [f'{option} = {value}' for option, value in wanted.items()]
        (self.directory / f'{name}.conf').write_text('\n'.join(lines))

    @contextlib.contextmanager
    def configured(self, names: Iterable[str], changes: Changes) -> Iterator[None]:
        """Restart some processes with other options, and restore them for the next test."""
        self._stop_running(names)
        for name in names:
            self.configure(name, changes)
            self.start(name)
        doors.wait_until(self.shows_hosts_up, 'the API shows all hosts up')
        try:
            yield
        finally:
            self._stop_running(names)
            for name in names:
                self.configure(name)

    def _options(self, name: str) -> dict[str, dict[str, object]]:
        host = next((host for host in self.hosts if host.name == name), None)
        return {
            'DEFAULT': {
                'host': name,
                'state_path': self.directory / name,
                'transport_url': self.urls[host.cell if host else API],
                'report_interval': REPORT_SECONDS,
                'service_down_time': 20,
                'rpc_response_timeout': 10,
                'debug': True,
            },
            'api': {'auth_strategy': 'noauth2', 'bind_port': self.api_port},
            'conductor': {
                'claim_lease_seconds': 3,
                'poll_interval_seconds': 0.5,
                'heartbeat_write_interval_seconds': 0.5,
                'cell_refresh_seconds': 1,
                'rpc_connect_retries': 0,
                'stop_timeout_seconds': 1,
                'plan_chunk_tasks': 1,
            },
            'database': {'connection': f'sqlite:///{self.directory}/precache.sqlite'},
            # A held download must not be given up, however long a test holds it.
            'glance': {'endpoint_override': self.gateway.url, 'read_timeout_seconds': 600},
            'image_cache': {
                'min_rate_bytes': 0,
                'retry_delay_seconds': 1,
                'retry_max_delay_seconds': 2,
                'precache_max_attempts': 1000,  # more than the longest outage costs
                'reserved_disk_bytes': 0,
            },
            'oslo_messaging_rabbit': {
                'heartbeat_timeout_threshold': 6,
                'rabbit_interval_max': 1,
                'kombu_reconnect_delay': 0.1,
            },
        }


def _can_stop(started: subprocess.Popen[bytes]) -> bool:
    """Return whether a process that has just been started handles SIGTERM yet."""
    if started.poll() is not None:
        return True
    status = pathlib.Path(f'/proc/{started.pid}/status').read_text()
    caught = int(re.search(r'^SigCgt:\s*(\w+)$', status, re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(caught & 1 << (signal.SIGTERM - 1))


_BASE_FILE = re.compile('[0-9a-f]{40}')


@pytest.fixture(scope='session')
def whole_deployment(
    glance: glance_server.GlanceServer,
    rabbitmq: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Deployment]:
    """Shared by all tests; a test that changes its configuration restores it."""
    with site_link.Gateway(glance.url) as gateway:
        directory = tmp_path_factory.mktemp('deployment')
        whole = Deployment(directory, gateway, rabbitmq, free_port)
        try:
            whole.set_up()
            yield whole
        finally:
            gateway.release()
            whole.tear_down()


@pytest.fixture
def deployment(whole_deployment: Deployment) -> Deployment:
    """A deployment in which everything runs; images and aggregates belong to each test."""
    whole_deployment.mend()
    whole_deployment.forget_logs()
    doors.wait_until(lambda: not whole_deployment.gateway.running(), 'no earlier download runs')
    whole_deployment.gateway.most_at_once = 0
    return whole_deployment


@pytest.fixture(scope='session')
def site(
    keystone: keystone_server.KeystoneServer,
    rabbitmq: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[keystone_site.Site]:
    """A site under a Keystone, for all tests; users, images and aggregates belong to each test."""
    directory = tmp_path_factory.mktemp('site')
    with (
        keystone_site.GlanceUnderKeystone(
            directory / 'glance', keystone, glance_policy.SHIPPED
        ) as glance,
        keystone_site.Gateway(glance.url) as gateway,
    ):
        brokers = rabbitmq.make_vhost(), rabbitmq.make_vhost()
        whole = keystone_site.Site(directory, keystone, glance, gateway, *brokers, free_port())
        try:
            whole.set_up()
            yield whole
        finally:
            gateway.release()
            whole.tear_down()


@pytest.fixture(scope='session')
def stock(
    glance: glance_server.GlanceServer,
    rabbitmq: RabbitMQ,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[nova_cloud.NovaCloud]:
    """A stock Nova that tests share; a test that changes it restores it."""
    require_environment(nova.ENVIRONMENT)
    directory: pathlib.Path = tmp_path_factory.mktemp('nova')
    with nova_cloud.NovaCloud(directory, rabbitmq.make_vhost(), glance.url) as running:
        yield running


@pytest.fixture(scope='session', autouse=True)
def _no_secret_is_told(secrets_kept: None) -> None:
    """Search everything that these tests wrote, after every process has stopped."""


@pytest.fixture(autouse=True)
def _programs_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find the commands of the environment that runs the tests."""
    monkeypatch.setenv('PATH', f'{BIN}{os.pathsep}{os.environ["PATH"]}')
