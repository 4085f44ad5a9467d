# SPDX-License-Identifier: Apache-2.0
"""Nova's compute endpoint under nginx, by the example in etc/nginx."""

import pathlib
import socket

from nova_precache.standalone import process
from tools.servers import own_port

SHIPPED = pathlib.Path(__file__).resolve().parents[2] / 'etc' / 'nginx'
# All paths are below its prefix, so that the nginx of the machine is not touched.
_CONFIGURATION = """\
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    log_format served '$upstream_addr $status $request';
    access_log access.log served;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include {directory}/compute-endpoint.conf;
}}
"""


class Nginx(own_port.OwnPort):
    """The shipped example of an endpoint, with other addresses.

    :param nova: host and port of nova-api
    :param precache: host and port of our API
    """

    name = 'nginx'

    def __init__(self, directory: pathlib.Path, nova: str, precache: str) -> None:
        super().__init__(directory)
        self._upstreams = {'127.0.0.1:18774': nova, '127.0.0.1:8775': precache}

    def served(self) -> list[tuple[str, str]]:
        """Return the answered requests: upstream host and port; method, path and version."""
        log = self.directory / 'access.log'
        lines = log.read_text().splitlines() if log.exists() else []
        parts = [line.split(' ', 2) for line in lines]
        return [(upstream, request) for upstream, _, request in parts]

    def _install(self) -> pathlib.Path:
        return own_port.program('nginx', 'nginx', '/usr/sbin')

    def _prepare(self, home: pathlib.Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        example = (SHIPPED / 'compute-endpoint.conf').read_text()
        replaced = {
            **self._upstreams,
            'listen 8774;': f'listen {process.HOST}:{self.port};',
            '/etc/nginx/snippets': str(SHIPPED),
        }
        for old, new in replaced.items():
            if example.count(old) != 1:
                raise process.ServerFailed(f'{SHIPPED} does not have exactly one {old}')
            example = example.replace(old, new)
        (self.directory / 'compute-endpoint.conf').write_text(example)
        whole = _CONFIGURATION.format(directory=self.directory)
        (self.directory / 'nginx.conf').write_text(whole)

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        configuration = str(self.directory / 'nginx.conf')
        return [str(home), '-p', str(self.directory), '-e', 'stderr', '-c', configuration]

    def _serves(self) -> bool:
        return own_port.accepts(self.port)
