# SPDX-License-Identifier: Apache-2.0
"""A stock tempest in an environment of its own, with our plugin and without the service.

The plugin is put beside it as it would be installed: the package, and the entry points
of setup.cfg as the metadata of a distribution.
"""

import configparser
import os
import pathlib
import subprocess
from collections.abc import Mapping

from nova_precache.standalone import environment, process
from tests.leaks import SECRETS

VERSION = '47.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'tempest-{VERSION}', requirements=(f'tempest=={VERSION}',)
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
PLUGIN = 'nova_precache_tempest_plugin'

Configuration = Mapping[str, Mapping[str, object]]


class Tempest:
    """A workspace: a configuration, and what runs leave behind.

    :param directory: an empty one
    """

    def __init__(self, directory: pathlib.Path, configuration: Configuration) -> None:
        self._home = ENVIRONMENT.ensure()
        self._directory = directory
        _install(directory / 'plugins')
        self._configure(configuration)

    def run(self, *arguments: str) -> str:
        """Run tempest, which must succeed, and give what it printed."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith('OS_')}
        done = subprocess.run(
            process.dies_with_parent([str(self._home / 'bin' / 'tempest'), *arguments], 'KILL'),
            cwd=self._directory,
            env={
                **ours,
                'HOME': str(self._directory),
                'PATH': f'{self._home / "bin"}{os.pathsep}{os.environ["PATH"]}',
                'PYTHONPATH': str(self._directory / 'plugins'),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert SECRETS.look_at(done).returncode == 0, done.stdout
        return done.stdout

    def run_tests(self, regex: str) -> str:
        """Run the tests whose names match, one after the other, and give tempest's report."""
        return self.run('run', '--serial', '--config-file', 'tempest.conf', '--regex', regex)

    def _configure(self, configuration: Configuration) -> None:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict(
            {
                'DEFAULT': {'log_file': self._directory / 'tempest.log'},
                'oslo_concurrency': {'lock_path': self._directory},
                **configuration,
            }
        )
        with (self._directory / 'tempest.conf').open('w') as file:
            parser.write(file)


def _install(directory: pathlib.Path) -> None:
    metadata = directory / 'nova_precache-1.dist-info'
    metadata.mkdir(parents=True)
    (metadata / 'METADATA').write_text('Metadata-Version: 2.1\nName: nova-precache\nVersion: 1\n')
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    plugins = setup['entry_points']['tempest.test_plugins']
    (metadata / 'entry_points.txt').write_text(f'[tempest.test_plugins]{plugins}\n')
    (directory / PLUGIN).symlink_to(ROOT / PLUGIN)
