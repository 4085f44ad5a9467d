# SPDX-License-Identifier: Apache-2.0
"""The real Glance as a child process, for standalone and for the tests.

It answers without tokens: every caller is an admin of it, so it listens on the
loopback only. Run as a module, ``--build`` prepares its environment and ends.
"""

import argparse
import logging
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
from types import TracebackType
from typing import Self

import requests

from nova_precache import exception
from nova_precache.standalone import environment, process

VERSION = '33.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'glance-{VERSION}', requirements=(f'glance=={VERSION}', 'gunicorn~=27.0')
)
HOST = '127.0.0.1'
START_SECONDS = 60
STOP_SECONDS = 15

# Time, method, URI as it was asked (Glance's pipeline shortens the path that others
# see), status, bytes sent, and the Range header in quotes.
_ACCESS_LOG_FORMAT = '%(t)s %(m)s %({raw_uri}e)s %(s)s %(B)s "%({range}i)s"'
_DATABASE_STAMP = 'glance.db.complete'
_CONFIGURATION = """\
[DEFAULT]
enabled_backends = local:file
image_cache_dir = {data}/cache
public_endpoint = {url}

[database]
connection = sqlite:///{data}/glance.db

[glance_store]
default_backend = local

[local]
filesystem_store_datadir = {data}/images

[os_glance_staging_store]
filesystem_store_datadir = {data}/staging

[os_glance_tasks_store]
filesystem_store_datadir = {data}/tasks

[paste_deploy]
flavor =
config_file = {environment}/etc/glance/glance-api-paste.ini

[oslo_policy]
policy_file = {data}/policy.yaml

[image_format]
require_image_format_match = {check_formats}
"""
_POLICY = '"context_is_admin": "@"\n'


class GlanceFailed(exception.PrecacheError):
    """Glance could not be started; the message has the last lines of its log."""


class GlanceServer:
    """A Glance with all its data in one directory, which may be used again and again.

    :param directory: configuration, database, images and logs; made when missing
    :param port: port to listen on; 0 takes a free one at the first start and keeps it
    :param check_formats: refuse an upload that is not of the format it claims; older
        Glances never did, so images that lie exist
    """

    def __init__(
        self, directory: pathlib.Path, port: int = 0, *, check_formats: bool = True
    ) -> None:
        self.directory = directory.resolve()
        self.port = port
        self._check_formats = check_formats
        self.log = self.directory / 'glance.log'
        self.access_log = self.directory / 'access.log'
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f'http://{HOST}:{self.port}'

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
        """Start Glance and return when it answers.

        It dies with the thread that calls this (see ``dies_with_parent``).

        :raises GlanceFailed: it runs already, did not come up, or the port is taken
        :raises nova_precache.standalone.environment.EnvironmentFailed: it is not installed
            and could not be
        """
        if self._process is not None:
            raise GlanceFailed(f'Glance runs already at {self.url}')
        home = ENVIRONMENT.ensure()
        with self._listen() as listener:
            self.port = listener.getsockname()[1]
            self._write_configuration(home)
            self._create_database(home)
            self._process = self._spawn(home, listener)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop Glance, with force when it takes too long; nothing when it does not run."""
        if self._process is None:
            return
        # Gunicorn's quick stop: nobody is left to be served.
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def served(self, image_id: str) -> int:
        """Count the answers that carried data of an image, whole or a range.

        Glance logs an answer once it ended, a moment after its last byte was sent.
        """
        served = re.compile(rf' GET /v2/images/{re.escape(image_id)}/file 20[06] ')
        try:
            lines = self.access_log.read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum(1 for line in lines if served.search(line))

    def _listen(self) -> socket.socket:
        """Take the port here, so that nobody else can between choosing and using it."""
        try:
            return socket.create_server((HOST, self.port), backlog=128)
        except OSError as exc:
            raise GlanceFailed(f'cannot listen on {HOST}:{self.port}: {exc}') from exc

    def _write_configuration(self, home: pathlib.Path) -> None:
        for name in ('cache', 'images', 'staging', 'tasks'):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / 'policy.yaml').write_text(_POLICY)
        (self.directory / 'glance-api.conf').write_text(
            _CONFIGURATION.format(
                data=self.directory,
                environment=home,
                url=self.url,
                check_formats=self._check_formats,
            )
        )

    def _create_database(self, home: pathlib.Path) -> None:
        """Create the schema once: it takes seconds, and most starts are not the first."""
        stamp = self.directory / _DATABASE_STAMP
        if stamp.exists() and stamp.read_text() == VERSION:
            return
        command = [
            str(home / 'bin' / 'glance-manage'),
            f'--config-file={self.directory}/glance-api.conf',
            'db_sync',
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
            raise GlanceFailed(f'glance-manage db_sync failed:\n{process.tail(self.log)}')
        stamp.write_text(VERSION)

    def _spawn(self, home: pathlib.Path, listener: socket.socket) -> subprocess.Popen[bytes]:
        command = [
            str(home / 'bin' / 'gunicorn'),
            f'--bind=fd://{listener.fileno()}',
            '--workers=1',
            '--threads=16',
            '--timeout=600',
            '--graceful-timeout=5',
            # Its place is one per user: a second Glance would take the first one's.
            '--no-control-socket',
            f'--access-logfile={self.access_log}',
            f'--access-logformat={_ACCESS_LOG_FORMAT}',
            'glance.wsgi.api:application',
        ]
        with self.log.open('ab') as log:
            # A session of its own: a Ctrl-C in the terminal reaches whoever runs
            # Glance, who stops it last.
            return subprocess.Popen(
                process.dies_with_parent(command, 'TERM'),
                env={**os.environ, 'OS_GLANCE_CONFIG_DIR': str(self.directory)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def _wait_until_it_answers(self) -> None:
        """Ask once: the port is open already, and the answer comes as soon as Glance is up.

        Only Glance holds the port now, so it is closed when Glance dies.
        """
        try:
            requests.get(self.url, timeout=START_SECONDS)
        except requests.RequestException as exc:
            raise GlanceFailed(f'Glance did not come up:\n{process.tail(self.log)}') from exc


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m nova_precache.standalone.glance')
    parser.add_argument(
        '--build', action='store_true', required=True, help='build the environment of Glance'
    )
    parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    try:
        print(ENVIRONMENT.ensure())
    except environment.EnvironmentFailed as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
