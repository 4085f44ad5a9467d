# SPDX-License-Identifier: Apache-2.0
"""The real Glance as a child process, for standalone, tests and tools.

It needs no tokens: every caller is its admin, so it listens on the loopback only. Run as a
module, ``--build`` builds its environment and exits.
"""

import argparse
import logging
import pathlib
import re
import signal
import socket
import sys
from collections.abc import Mapping

from nova_precache import files
from nova_precache.standalone import environment
from nova_precache.wsgi import origins

VERSION = '33.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'glance-{VERSION}', requirements=(f'glance=={VERSION}', 'gunicorn~=27.0')
)

# Time, method, raw URI (Glance's pipeline shortens the path of later middleware), status,
# bytes sent, and the Range header in quotes.
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
# This Glance checks neither the caller nor its Host and Origin headers.
_GUARDED = """\
import importlib.util
import sys

import glance.wsgi.api

_spec = importlib.util.spec_from_file_location('origins', {origins!r})
origins = sys.modules['origins'] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(origins)
application = origins.OriginGuard(glance.wsgi.api.application)
"""
_GUARDED_NAME = 'guarded_glance'
_POLICY = '"context_is_admin": "@"\n'


class GlanceServer(environment.PythonServer):
    """A Glance with all its data in one directory, which may be reused.

    :param directory: configuration, database, images and logs; created if missing
    :param check_formats: refuse an upload whose content is not of its disk_format; older
        Glances did not, so such images exist
    """

    name = 'Glance'
    python_environment = ENVIRONMENT
    stop_signal = signal.SIGQUIT  # Gunicorn's quick stop: no client is left

    def __init__(
        self, directory: pathlib.Path, port: int = 0, *, check_formats: bool = True
    ) -> None:
        super().__init__(directory, port)
        self._check_formats = check_formats
        self.access_log = self.directory / 'access.log'

    def served(self, image_id: str) -> int:
        """Count the answers with data of an image, whole or a range.

        Glance logs an answer when it ends, a moment after its last byte was sent.
        """
        served = re.compile(rf' GET /v2/images/{re.escape(image_id)}/file 20[06] ')
        try:
            lines = self.access_log.read_text().splitlines()
        except FileNotFoundError:
            return 0
        return sum(1 for line in lines if served.search(line))

    def _prepare(self, home: pathlib.Path) -> None:
        self._write_configuration(home)
        self._create_database(home)

    def _write_configuration(self, home: pathlib.Path) -> None:
        for name in ('cache', 'images', 'staging', 'tasks'):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        files.replace_whole(self.directory / 'policy.yaml', _POLICY)
        files.replace_whole(
            self.directory / f'{_GUARDED_NAME}.py', _GUARDED.format(origins=origins.__file__)
        )
        files.replace_whole(
            self.directory / 'glance-api.conf',
            _CONFIGURATION.format(
                data=self.directory,
                environment=home,
                url=self.url,
                check_formats=self._check_formats,
            ),
        )

    def _create_database(self, home: pathlib.Path) -> None:
        """Create the schema at the first start only, since it takes seconds."""
        stamp = self.directory / _DATABASE_STAMP
        if files.holds(stamp, VERSION):
            return
        self._manage(home, 'glance-manage', self.directory / 'glance-api.conf', 'db_sync')
        files.replace_whole(stamp, VERSION)

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [
            str(home / 'bin' / 'gunicorn'),
            f'--bind=fd://{listener.fileno()}',
            '--workers=1',
            '--threads=16',
            '--timeout=600',
            '--graceful-timeout=5',
            # Its path is per user: a second Glance would take over the first one's socket.
            '--no-control-socket',
            f'--access-logfile={self.access_log}',
            f'--access-logformat={_ACCESS_LOG_FORMAT}',
            f'--pythonpath={self.directory}',
            f'{_GUARDED_NAME}:application',
        ]

    def _variables(self) -> Mapping[str, str]:
        return {'OS_GLANCE_CONFIG_DIR': str(self.directory)}


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
