# SPDX-License-Identifier: Apache-2.0
"""A stock Nova from its package, in an environment of its own.

``api`` is nova-api alone and ``cloud`` a whole Nova; ``inventory`` fills an API database, and
``libvirt_compute`` is the libvirt driver of a nova-compute.
"""

import importlib.metadata
import pathlib

from nova_precache.standalone import environment

VERSION = '34.0.0'
PLACEMENT_VERSION = '16.0.0'
ENVIRONMENT = environment.PythonEnvironment(
    name=f'nova-{VERSION}',
    requirements=(
        f'nova=={VERSION}',
        f'openstack-placement=={PLACEMENT_VERSION}',
        'waitress~=3.0',
    ),
)


def variables(modules: pathlib.Path) -> dict[str, str]:
    """Return the environment variables of Nova's programs.

    :param modules: directory of Python modules that its environment lacks
    """
    return {'OS_NOVA_DISABLE_EVENTLET_PATCHING': 'true', 'PYTHONPATH': str(modules)}


def link_pymysql(modules: pathlib.Path) -> None:
    """Link our driver of MariaDB, which Nova's environment lacks, into a directory."""
    installed = importlib.metadata.distribution('pymysql').locate_file('pymysql')
    (modules / 'pymysql').symlink_to(pathlib.Path(str(installed)))
