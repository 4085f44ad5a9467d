# SPDX-License-Identifier: Apache-2.0
"""gunicorn and uwsgi serve the application, with several processes each."""

import contextlib
import dataclasses
import json
import pathlib
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence

import pytest
import requests

from nova_precache import conf as options, model
from nova_precache.db import services
from nova_precache.db.engine import schema, session
from tests import wsgi
from tests.leaks import SECRETS
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

# A proxy that strips /compute must not lose or change any part of it.
FORWARDED = {
    'X-Forwarded-Proto': 'https',
    'X-Forwarded-Host': 'cloud.example',
    'X-Forwarded-Prefix': '/compute',
}


@dataclasses.dataclass(frozen=True)
class Served:
    """The application in a server, and the log of its processes."""

    url: str
    log_path: pathlib.Path
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=FORWARDED, timeout=TIMEOUT_SECONDS)

    def answers(self) -> bool:
        try:
            return self.get('/healthcheck').ok
        except requests.ConnectionError:
            return False

    def logged(self) -> list[dict[str, object]]:
        """The application's log records; the server's own lines are not JSON."""
        lines = self.log_path.read_text().rpartition('\n')[0].splitlines()  # the last may be cut
        return [json.loads(line) for line in lines if line.startswith('{')]


@contextlib.contextmanager
def _serving(
    command: Sequence[str], directory: pathlib.Path, name: str, url: str
) -> Iterator[Served]:
    log_path = SECRETS.expect(directory / f'{name}.log')
    environment = wsgi.environment(directory / 'nova-precache.conf')
    with (
        log_path.open('w') as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            yield Served(url, log_path, process)
            process.terminate()
            assert process.wait(TIMEOUT_SECONDS) == 0
        finally:
            process.kill()


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with a configuration and a synced database."""
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text(
        f"""\
[DEFAULT]
transport_url = fake://precache:{SECRETS.make('password of a broker')}@127.0.0.1/wsgi
debug = true
use_json = true
[database]
connection = sqlite:///{tmp_path}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
[healthcheck]
backends = disable_by_file
disable_by_file_path = {tmp_path}/off
[keystone_authtoken]
auth_type = none
endpoint = http://127.0.0.1:1
www_authenticate_uri = http://127.0.0.1:1
[oslo_middleware]
enable_proxy_headers_parsing = true
"""
    )
    database = session.connect(options.new(config_files=[str(conf)]))
    schema.sync(database)
    database.dispose()
    return tmp_path


def test_gunicorn_and_uwsgi_serve_several_processes(
    directory: pathlib.Path, free_port: Callable[[], int]
) -> None:
    uwsgi_address, gunicorn_address = (f'127.0.0.1:{free_port()}' for _ in range(2))
    gunicorn = [
        str(wsgi.BIN / 'gunicorn'),
        '--bind',
        gunicorn_address,
        '--workers',
        str(wsgi.WORKERS),
    ]
    # It kills a process that takes longer to load the application.
    gunicorn += ['--timeout', str(TIMEOUT_SECONDS)]
    gunicorn += ['--threads', '4', 'nova_precache.wsgi.api:application']
    uwsgi = wsgi.uwsgi(directory, uwsgi_address)

    with (  # in parallel: each takes a while to start
        _serving(gunicorn, directory, 'gunicorn', f'http://{gunicorn_address}') as by_gunicorn,
        _serving(uwsgi, directory, 'uwsgi', f'http://{uwsgi_address}') as by_uwsgi,
    ):
        for served in (by_gunicorn, by_uwsgi):
            _check(served)
        wait_until(lambda: _up(directory) == 2 * wsgi.WORKERS, 'every process is registered')
        _check_reload(directory, by_gunicorn, by_uwsgi)
        wait_until(lambda: _up(directory) == 2 * wsgi.WORKERS, 'only the new ones are up')
        anew = 2 * wsgi.WORKERS
        wait_until(lambda: _ready(by_uwsgi) == anew, 'no process of uwsgi misses its end')
        (directory / 'off').touch()
        assert [each.get('/healthcheck').status_code for each in (by_gunicorn, by_uwsgi)] == [
            503,
            503,
        ]
    assert _up(directory) == 0  # they have stopped cleanly


def test_servers_that_fork_register_workers(
    directory: pathlib.Path, free_port: Callable[[], int]
) -> None:
    uwsgi_address, gunicorn_address = (f'127.0.0.1:{free_port()}' for _ in range(2))
    gunicorn = [str(wsgi.BIN / 'gunicorn'), '--preload', '--bind', gunicorn_address]
    gunicorn += ['--workers', str(wsgi.WORKERS), 'nova_precache.wsgi.api:application']
    uwsgi = wsgi.uwsgi(directory, uwsgi_address)
    file = directory / 'uwsgi.ini'
    file.write_text(file.read_text().replace('lazy-apps = true\n', ''))

    with (
        _serving(gunicorn, directory, 'gunicorn', f'http://{gunicorn_address}') as by_gunicorn,
        _serving(uwsgi, directory, 'uwsgi', f'http://{uwsgi_address}') as by_uwsgi,
    ):
        for served in (by_gunicorn, by_uwsgi):
            wait_until(served.answers, f'{served.log_path.name}: it answers', 120)
        wait_until(lambda: _up(directory) == 2 * wsgi.WORKERS, 'each worker is registered')
        assert by_gunicorn.get('/healthcheck/ready').status_code == 503  # there is no conductor
    assert _up(directory) == 0


def _check(served: Served) -> None:
    wait_until(served.answers, f'{served.log_path.name}: it answers', 120)
    wait_until(
        lambda: len(_processes(served)) == wsgi.WORKERS, 'every process has the application', 120
    )

    versions = served.get('/').json()['versions']
    precache = served.get('/v1/').json()['version']
    refused = served.get('/v1/requests')

    links = {version['links'][0]['href'] for version in [*versions, precache]}
    assert links == {'https://cloud.example/compute/v2.1/', 'https://cloud.example/compute/v1/'}
    assert refused.status_code == 401
    assert refused.headers['x-openstack-request-id'].startswith('req-')
    paths = {str(line['message']).split('"')[1] for line in _of(served, 'api.requestlog')}
    assert paths == {'GET /', 'GET /v1/', 'GET /v1/requests'}  # and not the health checks


def _check_reload(directory: pathlib.Path, *servers: Served) -> None:
    """Check that after SIGHUP the same server uses the new configuration."""
    conf = directory / 'nova-precache.conf'
    conf.write_text(f'{conf.read_text()}[api]\npublic_endpoint = https://new.example\n')
    for served in servers:
        served.process.send_signal(signal.SIGHUP)
    for served in servers:
        wait_until(lambda served=served: _has_loaded_anew(served), 'all is loaded anew', 120)
        link = served.get('/v1/').json()['version']['links'][0]['href']
        assert link == 'https://new.example/v1/'


def _has_loaded_anew(served: Served) -> bool:
    assert served.process.poll() is None, f'it ended; its log is {served.log_path}'
    return len(_processes(served)) == 2 * wsgi.WORKERS


def _up(directory: pathlib.Path) -> int:
    """Count the processes of the API that are listed as up."""
    conf = options.new(config_files=[str(directory / 'nova-precache.conf')])
    with session.connect(conf) as database:
        known = services.Services(database, conf.service_down_time, conf.report_interval)
        return len(known.list_page(binary=model.Binary.API, status=model.HostStatus.UP))


def _ready(served: Served) -> int:
    """Count the processes of uwsgi that have loaded the application."""
    return served.log_path.read_text().count(' ready in ')


def _processes(served: Served) -> set[object]:
    return {line['process'] for line in _of(served, 'wsgi.foreign')}


def _of(served: Served, module: str) -> list[dict[str, object]]:
    return [line for line in served.logged() if line['name'] == f'nova_precache.{module}']
