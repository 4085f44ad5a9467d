# SPDX-License-Identifier: Apache-2.0
"""A command closes every database that it opened: its own, Nova's and those of the cells."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nova_precache.cells import inventory, models
from tests.service import wait_until
from tests.unit.cells.conftest import CellDatabase
from tests.unit.conftest import open_database
from tools.waiting import TIMEOUT_SECONDS

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Prints the databases that are open when the command would exit.
REPORT = """
import gc, os, pathlib, sys
from nova_precache.cmd import running
from tests import unclosed

def exit_with(main):
    try:
        main()
    except Exception as exc:
        print(exc)
    open_now = unclosed.databases(pathlib.Path(sys.argv[2]).parent)
    print('left open:', dict(open_now), flush=True)
    sys.stderr.flush()
    os._exit(0)

gc.disable()  # which would close some of what is left open, or not
running.exit_with = exit_with
"""


@pytest.fixture
def conf(tmp_path: pathlib.Path, database_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The configuration beside a Nova of one cell, whose database has a nova-compute."""
    cell = CellDatabase(tmp_path / 'cell1.sqlite')
    cell.add('host1')
    nova = open_database(tmp_path / 'nova_api.sqlite')
    models.InventoryBase.metadata.create_all(nova.engine)
    stock = inventory.Inventory(nova)
    stock.map_host('host1', stock.create_cell('cell1', 'fake:///cell1', cell.url).uuid)
    nova.dispose()
    path = tmp_path / 'nova-precache.conf'
    path.write_text(
        f"""\
[DEFAULT]
transport_url = fake:///
[api]
auth_strategy = noauth2
bind_port = 0
[api_database]
connection = sqlite:///{tmp_path}/nova_api.sqlite
[database]
connection = sqlite:///{database_path}
max_retries = 0
[glance]
endpoint_override = http://127.0.0.1:1
[image_cache]
compute_backend = nova
"""
    )
    yield path
    cell.close()


def _start(conf: pathlib.Path, run: str, *arguments: str) -> subprocess.Popen[str]:
    module, function = run.split('.')
    code = f'{REPORT}\nfrom nova_precache.cmd import {module}; {module}.{function}()'
    python = [sys.executable, '-X', 'dev', '-W', 'ignore', '-W', 'always::ResourceWarning']
    return subprocess.Popen(
        [*python, '-c', code, '--config-file', str(conf), *arguments],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _assert_all_is_closed(process: subprocess.Popen[str]) -> str:
    with process:
        out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    assert out.splitlines()[-1:] == ['left open: {}'], err
    assert 'ResourceWarning' not in err
    return out


@pytest.mark.parametrize(
    'arguments',
    ['db sync', 'db version', 'db purge', 'host list'],
)
def test_command_closes_its_resources(conf: pathlib.Path, arguments: str) -> None:
    _assert_all_is_closed(_start(conf, 'manage.main', *arguments.split()))


def test_upgrade_check_closes_its_resources(conf: pathlib.Path) -> None:
    _assert_all_is_closed(_start(conf, 'status.main', 'upgrade', 'check'))


@pytest.mark.parametrize(
    ('spoil', 'why'),
    [
        ('precache.sqlite', 'run nova-precache-manage db sync'),
        ('nova_api.sqlite', 'table aggregates is missing'),
    ],
)
def test_refused_command_closes_its_resources(conf: pathlib.Path, spoil: str, why: str) -> None:
    (conf.parent / spoil).unlink()
    (conf.parent / spoil).touch()

    assert why in _assert_all_is_closed(_start(conf, 'manage.main', 'host', 'list'))


def test_command_closes_non_database_file(conf: pathlib.Path) -> None:
    (conf.parent / 'precache.sqlite').write_bytes(b'no database at all, but long enough' * 100)

    out = _assert_all_is_closed(_start(conf, 'manage.main', 'db', 'version'))

    assert '[database] connection cannot be used' in out


@pytest.mark.parametrize('run', ['control.run_api', 'control.run_conductor'])
def test_stopping_service_closes_its_resources(conf: pathlib.Path, run: str) -> None:
    log = conf.parent / 'log'
    process = _start(conf, run, '--log-file', str(log))
    wait_until(lambda: log.exists() and _is_up(log.read_text(), run), f'{run} runs')

    process.send_signal(signal.SIGTERM)

    _assert_all_is_closed(process)


def _is_up(log: str, run: str) -> bool:
    return 'Concurrency backend' in log if run.endswith('api') else 'runs' in log


def test_resources_closed_with_their_database(database_path: pathlib.Path) -> None:
    closed: list[str] = []
    with open_database(database_path) as database:
        database.closes(lambda: closed.append('beside'))
        with database.reader():
            assert closed == []

    assert closed == ['beside']
