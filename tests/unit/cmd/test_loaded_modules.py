# SPDX-License-Identifier: Apache-2.0
"""A process holds in memory only the libraries that it uses."""

import json
import pathlib
import subprocess
import sys

import pytest

from nova_precache import conf as options
from nova_precache.db.engine import schema, session

# Ends a command when all of its parts are built, before it starts them.
SHOWN_WHEN_BUILT = """
import json, os, sys
from nova_precache import backend

really = backend.current

def current():
    if sys._getframe(1).f_code.co_name != 'run':
        return really()
    print(json.dumps([name for name, loaded in sys.modules.items() if loaded is not None]))
    sys.stdout.flush()
    os._exit(0)

backend.current = current
from nova_precache.cmd import {command}
{command}.main()
"""
OF_API = {'h11', 'jsonschema', 'keystoneclient', 'keystonemiddleware', 'oslo_policy', 'routes'}
OF_DATABASE = {'alembic', 'oslo_db.sqlalchemy', 'pymysql', 'sqlalchemy'}
OF_CLIENT = {'cliff', 'openstack', 'osc_lib'}
NOT_IN_CONDUCTOR = {*OF_API, *OF_CLIENT, 'eventlet', 'nova_precache.api', 'webob'}
NOT_IN_COMPUTE = {
    *NOT_IN_CONDUCTOR,
    *OF_DATABASE,
    'cryptography',
    'nova_precache.cells',
    'nova_precache.db',
}


def _loaded(command: str, directory: pathlib.Path) -> set[str]:
    """Return the modules of a command that is about to start, with the real RabbitMQ driver."""
    file = directory / 'nova-precache.conf'
    file.write_text(f"""\
[DEFAULT]
transport_url = rabbit://user:password@127.0.0.1:1/
state_path = {directory}
[database]
connection = sqlite:///{directory}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
""")
    database = session.connect(options.new(config_files=[str(file)]))
    schema.sync(database)
    database.dispose()
    code = SHOWN_WHEN_BUILT.format(command=command)
    ran = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, '--config-file', str(file)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return set(json.loads(ran.stdout))


@pytest.mark.parametrize(
    ('command', 'unused'), [('compute', NOT_IN_COMPUTE), ('conductor', NOT_IN_CONDUCTOR)]
)
def test_command_loads_no_unused_library(
    command: str, unused: set[str], tmp_path: pathlib.Path
) -> None:
    loaded = _loaded(command, tmp_path)

    assert {'kombu', 'oslo_messaging', f'nova_precache.wiring.{command}'} <= loaded
    assert loaded & unused == set()
