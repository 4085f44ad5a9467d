# SPDX-License-Identifier: Apache-2.0
"""A conductor in its own process, the image service that it asks, and the queues of its broker."""

import dataclasses
import http
import http.server
import json
import pathlib
import socket
import sys
from collections.abc import Mapping
from typing import Any, Self

import kombu

from benchmarks import observed
from benchmarks.fleet.cases import BROKER, DATABASE
from benchmarks.fleet.computes import IMAGE_BYTES
from nova_precache import concurrency
from nova_precache.conductor import rpcapi
from nova_precache.standalone import process
from tools.servers import own_port
from tools.waiting import wait_until

_COMMAND = 'from nova_precache.cmd.conductor import main; main()'
_CONFIGURATION = """\
[DEFAULT]
transport_url = {transport_url}
state_path = {directory}
host = conductor
report_interval = {report_seconds:g}
service_down_time = {down_seconds:g}
[conductor]
heartbeat_write_interval_seconds = {write_seconds:g}
[database]
connection = {connection}
[glance]
endpoint_override = {glance_url}
[image_cache]
precache_concurrency = {parallel}
"""


@dataclasses.dataclass(frozen=True)
class Intervals:
    """``report_interval``, ``service_down_time`` and ``heartbeat_write_interval_seconds``."""

    report_seconds: float
    down_seconds: float
    write_seconds: float


DEFAULT = Intervals(10, 60, 5)


class Queues:
    """The queues of the conductors' topics on a broker."""

    def __init__(self, transport_url: str) -> None:
        url = transport_url.replace('rabbit://', 'amqp://')
        self._connection = kombu.Connection(url)  # type: ignore[attr-defined,no-untyped-call]
        self._topics = sorted(
            value for name, value in vars(rpcapi).items() if name.endswith('TOPIC')
        )

    def close(self) -> None:
        self._connection.release()  # type: ignore[no-untyped-call]

    def messages(self) -> int:
        """Count the messages that no conductor has taken."""
        return sum(each.message_count for each in self._declared().values())

    def are_served(self) -> bool:
        """Return whether a conductor consumes the calls of computes, and all that is there."""
        found = self._declared()
        return rpcapi.TOPIC in found and all(each.consumer_count for each in found.values())

    def _declared(self) -> Mapping[str, Any]:
        found = {}
        for name in self._topics:
            channel = self._connection.channel()  # type: ignore[no-untyped-call]
            try:
                found[name] = channel.queue_declare(name, passive=True)
            except self._connection.channel_errors:
                continue  # not served yet
            channel.close()
        return found


class Conductor(own_port.OwnPort):
    """The conductor as a deployment runs it, with its default intervals.

    :param parallel: ``[image_cache] precache_concurrency``
    """

    name = 'nova-precache-conductor'

    def __init__(
        self,
        directory: pathlib.Path,
        database_url: str,
        transport_url: str,
        glance_url: str,
        parallel: int = 1,
        intervals: Intervals = DEFAULT,
    ) -> None:
        directory.mkdir()
        super().__init__(directory)
        self.queues = Queues(transport_url)
        self._configuration = self.directory / 'nova-precache.conf'
        self._configuration.write_text(
            _CONFIGURATION.format(
                transport_url=transport_url,
                directory=self.directory,
                connection=database_url.replace('%', '%%'),
                glance_url=glance_url,
                parallel=parallel,
                report_seconds=intervals.report_seconds,
                down_seconds=intervals.down_seconds,
                write_seconds=intervals.write_seconds,
            )
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        super().stop()
        self.queues.close()

    def restart(self) -> None:
        """Start it again and wait until it serves."""
        self.start()
        self.wait()

    def kill(self) -> None:
        """Kill it, as on a lost machine."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None
        wait_until(lambda: not self.queues.are_served(), 'the broker has noticed the end')

    def _install(self) -> pathlib.Path:
        return pathlib.Path(sys.executable)

    def _prepare(self, home: pathlib.Path) -> None: ...

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        command = [str(home), '-W', 'ignore', '-c', _COMMAND]
        return [*command, f'--config-file={self._configuration}']

    def _serves(self) -> bool:
        return self.queues.are_served()


class Images(http.server.ThreadingHTTPServer):
    """An image service that has any image, without data, for the look-ups of a conductor."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((process.HOST, 0), _Image)
        self.url = f'http://{process.HOST}:{self.server_address[1]}'

    def __enter__(self) -> Self:
        concurrency.in_background(self.serve_forever, 'images')
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Image(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self) -> None:
        image = {
            'id': self.path.rpartition('/')[2],
            'status': 'active',
            'visibility': 'public',
            'disk_format': 'raw',
            'container_format': 'bare',
            'size': IMAGE_BYTES,
        }
        body = json.dumps(image).encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *ignored: object) -> None: ...


@dataclasses.dataclass(frozen=True)
class Cpu:
    """CPU seconds of the three processes that handle a message."""

    conductor: float
    database: float
    broker: float

    def since(self, before: 'Cpu') -> 'Cpu':
        return Cpu(
            self.conductor - before.conductor,
            self.database - before.database,
            self.broker - before.broker,
        )

    def times(self, factor: float) -> 'Cpu':
        return Cpu(self.conductor * factor, self.database * factor, self.broker * factor)


def cpu(conductor_pid: int, servers: Mapping[str, int]) -> Cpu:
    """Read the CPU times of a conductor, and of the servers that are given."""
    taken = {name: observed.cpu_seconds(pid) for name, pid in servers.items()}
    return Cpu(
        observed.cpu_seconds(conductor_pid), taken.get(DATABASE, 0.0), taken.get(BROKER, 0.0)
    )
