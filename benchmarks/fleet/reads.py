# SPDX-License-Identifier: Apache-2.0
"""Reads of a large request through the API in its own process, while some hosts are at work.

First one client reads; then many wait for the request to end, each as ``openstack precache
create --wait`` does, with its own code.
"""

import contextlib
import dataclasses
import http.client
import io
import pathlib
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, Self

import requests
import sqlalchemy as sa
from keystoneauth1 import exceptions as keystone

from benchmarks import observed
from benchmarks.fleet import site
from benchmarks.fleet.cases import Case
from benchmarks.fleet.computes import CACHED, SimulatedComputes
from nova_precache import model
from nova_precache.compute import rpcapi
from nova_precache.conductor import report_buffer
from nova_precache.db import jobs
from nova_precache.osc import client as osc_client, showing, waiting
from nova_precache.standalone import process
from tools import waiting as tools_waiting
from tools.servers import own_port

API_USER = 'api'  # of the database, by which the statements are counted
PAGE = 20
REQUEST = 'a request'
TASKS = f'{PAGE} of its tasks'
ALL_TASKS = f'{PAGE} of all tasks'
REQUESTS = 'the requests'
_AT_WORK = 5
READS, _READ_SECONDS = 200, 10.0
_FIRST_READS = 5
_PROGRESS_SECONDS = 1.0
_RATE_BYTES = 10 * 1024**2
_LARGE_BYTES = 2**40  # does not end while it is read
_API_THREADS = 16
_STOP_SECONDS = 60.0
_NOT_MODIFIED, _FAILED = 304, 500

_CONFIGURATION = """\
[DEFAULT]
transport_url = fake:///api
state_path = {directory}
service_down_time = {service_down_time}
[api]
auth_strategy = noauth2
bind_port = {port}
threads = {threads}
[database]
connection = {connection}
max_pool_size = {threads}
[glance]
endpoint_override = http://127.0.0.1:9
[image_cache]
precache_concurrency = {at_work}
"""
_COMMAND = 'from nova_precache.cmd.api import main; main()'
_STATEMENTS = sa.text(
    'SELECT SUM(SELECT_COMMANDS + UPDATE_COMMANDS) FROM information_schema.USER_STATISTICS'
    ' WHERE USER = :user'
)


@dataclasses.dataclass(frozen=True)
class Read:
    """Cost of one read by a single client; statements are counted on MariaDB only."""

    what: str
    p50_ms: float
    p95_ms: float
    statements: float
    api_cpu_ms: float
    database_cpu_ms: float


@dataclasses.dataclass(frozen=True)
class Watched:
    """What clients that wait for the request cost.

    :ivar reads: of all of them, a second
    :ivar unchanged_share: of these reads, those answered with 304
    :ivar failed_share: likewise, those answered with 500 and above
    """

    watchers: int
    reads: float
    unchanged_share: float
    failed_share: float
    p50_ms: float
    api_cores: float
    database_cores: float

    @property
    def lost_share(self) -> float:
        """The failed share; all of it if no read was answered."""
        return self.failed_share if self.reads else 1.0

    @property
    def cores(self) -> float:
        return self.api_cores + self.database_cores


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: its status, when it was complete, and the seconds since its request."""

    status: int
    ended: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Reads:
    """Results with one request."""

    database: str
    tasks: int
    reads: Sequence[Read]
    watched: Watched


def from_json(found: Mapping[str, Any]) -> Reads:
    reads = [Read(**each) for each in found['reads']]
    return Reads(**{**found, 'reads': reads, 'watched': Watched(**found['watched'])})


def measure(
    database: str,
    hosts: int,
    images: int,
    watchers: int,
    watched_seconds: float,
    database_url: str,
    api_database_url: str,
    database_pid: int | None = None,
    count: int = READS,
) -> Reads:
    """Plan a request, begin it on some hosts, then read it.

    :param api_database_url: of the same database, for the API
    :param count: how often one client makes each read, fewer times if it takes long
    """
    case = Case(database, hosts, images=images, parallel=min(hosts, _AT_WORK))
    with site.opened(case, database_url) as world, contextlib.ExitStack() as running:
        computes = DownloadingComputes(world.parts.jobs, world.parts.reports)
        world.simulate(computes)
        running.enter_context(world.conducting())
        running.callback(computes.over.set)
        request_id = _begin(case, world, computes)
        directory = pathlib.Path(running.enter_context(tempfile.TemporaryDirectory()))
        api = running.enter_context(Api(directory, api_database_url))
        bench = _Bench(world, api, database_pid, count)
        paths = {
            REQUEST: f'/requests/{request_id}',
            TASKS: f'/requests/{request_id}/tasks?limit={PAGE}',
            ALL_TASKS: f'/tasks?limit={PAGE}',
            REQUESTS: '/requests',
        }
        reads = [bench.read(what, path) for what, path in paths.items()]
        watched = bench.watch(request_id, watchers, watched_seconds)
        return Reads(database, case.tasks, reads, watched)


def _begin(case: Case, world: site.World, computes: 'DownloadingComputes') -> str:
    new = world.new_request(case.images, world.site.fleet, image_bytes=_LARGE_BYTES)
    request = world.ask(new)
    poll = site.StatusPoll(world.parts.database, request.id)
    poll.until(lambda status: status == model.RequestStatus.RUNNING)
    poll.close()
    tools_waiting.wait_until(
        lambda: len(computes.called) >= case.parallel, 'the hosts are at work', _STOP_SECONDS
    )
    return request.id


class DownloadingComputes(SimulatedComputes):
    """Downloads do not end, and report progress every second, as those of real computes."""

    def __init__(self, job_store: jobs.Jobs, reports: report_buffer.ReportBuffer) -> None:
        super().__init__(job_store)
        self._reports = reports
        self.over = threading.Event()

    def _transfer(self, host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        number = 0
        while not self.over.wait(_PROGRESS_SECONDS):
            number += 1
            done = int(number * _PROGRESS_SECONDS * _RATE_BYTES)
            progress = model.Progress(
                model.TaskStatus.DOWNLOADING, done, _LARGE_BYTES, rate_bytes=_RATE_BYTES
            )
            report = jobs.ProgressReport(call.job_id, call.epoch, number, progress)
            self._reports.add_progress(report)
        return CACHED


class Api(own_port.OwnPort):
    """The API as a deployment runs it, without authentication."""

    name = 'nova-precache-api'

    def __init__(self, directory: pathlib.Path, database_url: str) -> None:
        super().__init__(directory)
        self._database_url = database_url

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _install(self) -> pathlib.Path:
        return pathlib.Path(sys.executable)

    def _prepare(self, home: pathlib.Path) -> None:
        self._configuration.write_text(
            _CONFIGURATION.format(
                directory=self.directory,
                service_down_time=site.FOR_EVER_SECONDS,
                port=self.port,
                threads=_API_THREADS,
                connection=self._database_url.replace('%', '%%'),
                at_work=_AT_WORK,
            )
        )

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        command = [str(home), '-W', 'ignore', '-c', _COMMAND]
        return [*command, f'--config-file={self._configuration}']

    def _serves(self) -> bool:
        return own_port.accepts(self.port)

    @property
    def _configuration(self) -> pathlib.Path:
        return self.directory / 'nova-precache.conf'


class Client:
    """Sends the requests of one client over one connection; it takes little CPU itself.

    The session of the ``openstack`` command would take more than the API.

    :ivar answers: all of them
    """

    def __init__(self, port: int, answers: list[Answer] | None = None) -> None:
        self._connection = http.client.HTTPConnection(
            process.HOST, port, timeout=osc_client.TIMEOUT_SECONDS
        )
        self.answers = [] if answers is None else answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def request(
        self,
        url: str,
        method: str = 'GET',
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        **ignored: Any,
    ) -> requests.Response:
        """Send a request as the adapter of keystoneauth does."""
        query = f'?{urllib.parse.urlencode(params)}' if params else ''
        began = time.monotonic()
        try:
            self._connection.request(method, f'/v1{url}{query}', headers=dict(headers or {}))
            got = self._connection.getresponse()
            body = got.read()
        except (OSError, http.client.HTTPException) as exc:
            self._connection.close()
            raise keystone.ConnectFailure(str(exc)) from exc
        ended = time.monotonic()
        self.answers.append(Answer(got.status, ended, ended - began))
        answer = requests.Response()
        answer.status_code, answer.reason, answer.url = got.status, got.reason, url
        answer.headers.update(got.getheaders())
        answer.raw = io.BytesIO(body)
        return answer


class _NoView:
    """Shows nothing."""

    def show(self, snapshot: showing.Snapshot) -> None: ...

    def note(self, text: str) -> None: ...


@dataclasses.dataclass(frozen=True)
class _Bench:
    world: site.World
    api: Api
    database_pid: int | None
    count: int

    def read(self, what: str, path: str) -> Read:
        """Read one thing again and again."""
        with Client(self.api.port) as client:
            self._read(client, path, _FIRST_READS)
            client.answers.clear()
            statements, api, database = self._statements(), *self._cpu()
            self._read(client, path, self.count)
            api_seconds, database_seconds = self._cpu()
        count = len(client.answers)
        taken_ms = [each.seconds * 1000 for each in client.answers]
        return Read(
            what,
            p50_ms=statistics.median(taken_ms),
            p95_ms=statistics.quantiles(taken_ms, n=20)[-1],
            statements=(self._statements() - statements) / count,
            api_cpu_ms=(api_seconds - api) * 1000 / count,
            database_cpu_ms=(database_seconds - database) * 1000 / count,
        )

    def _read(self, client: Client, path: str, most: int) -> None:
        ends_at = time.monotonic() + _READ_SECONDS
        while len(client.answers) < 2 or (
            len(client.answers) < most and time.monotonic() < ends_at
        ):
            client.request(path).raise_for_status()

    def watch(self, request_id: str, watchers: int, seconds: float) -> Watched:
        """Run clients that wait for the request; measure the second half of the time."""
        answers: list[Answer] = []
        began = time.monotonic()

        def wait(number: int) -> None:
            time.sleep(number / watchers)  # they do not start at the same time
            with Client(self.api.port, answers) as client:
                asks = osc_client.ApiClient(client)  # type: ignore[arg-type] # all that it uses
                watcher = waiting.RequestWatcher(asks, _NoView(), ends_at=began + seconds)
                with contextlib.suppress(osc_client.ApiUnavailable):  # until the end
                    watcher.watch(request_id)

        with futures.ThreadPoolExecutor(watchers) as pool:
            waits = [pool.submit(wait, number) for number in range(watchers)]
            time.sleep(seconds / 2)
            since, (api, database) = time.monotonic(), self._cpu()
            time.sleep(max(0.0, began + seconds - since))
            passed, (api_seconds, database_seconds) = time.monotonic() - since, self._cpu()
            counted = [each for each in list(answers) if since <= each.ended <= since + passed]
            for each in waits:
                each.result()  # raises its error
        return Watched(
            watchers,
            reads=len(counted) / passed,
            unchanged_share=_share(counted, lambda status: status == _NOT_MODIFIED),
            failed_share=_share(counted, lambda status: status >= _FAILED),
            p50_ms=statistics.median([each.seconds for each in counted] or [0.0]) * 1000,
            api_cores=(api_seconds - api) / passed,
            database_cores=(database_seconds - database) / passed,
        )

    def _cpu(self) -> tuple[float, float]:
        """Return the CPU times of the API and of the database's server."""
        pid = self.database_pid
        server = 0.0 if pid is None else observed.cpu_seconds(pid)
        return observed.cpu_seconds(self.api.pid), server

    def _statements(self) -> int:
        """Return the number of statements of the API so far."""
        engine = self.world.parts.database.engine
        if engine.dialect.name == 'sqlite':
            return 0
        with engine.connect() as connection:
            return int(connection.execute(_STATEMENTS, {'user': API_USER}).scalar_one())


def _share(answers: Sequence[Answer], is_so: Callable[[int], bool]) -> float:
    return sum(is_so(each.status) for each in answers) / max(1, len(answers))
