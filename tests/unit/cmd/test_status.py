# SPDX-License-Identifier: Apache-2.0
"""nova-precache-status upgrade check: its findings and its exit code."""

import contextlib
import dataclasses
import json
import pathlib
import re
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from oslo_upgradecheck import upgradecheck

from nova_precache import model
from nova_precache.cells import inventory
from nova_precache.cmd import reachability, status
from nova_precache.db import agents, services
from nova_precache.db.engine import models, schema, session
from nova_precache.wiring import process as wiring_process
from tests.unit.conftest import LONG_AGO, open_database

pytestmark = pytest.mark.usefixtures('root_logger_as_it_was')

Run = Callable[[], tuple[int, dict[str, tuple[str, str | None]]]]

CHECKS = (
    'Database schema',
    'Policy file format',
    'Policy rules',
    'Conductors',
    'Conductors and APIs',
    'Cells',
    'Cell databases',
    'Computes',
)
CONDUCTOR = model.ServiceProcess('c-1', model.Binary.CONDUCTOR, 'ctl1', wiring_process.version())
API = model.ServiceProcess('a-1', model.Binary.API, 'ctl2', wiring_process.version())


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory for the configuration."""
    (tmp_path / 'nova-precache.conf').write_text(
        f'[database]\nconnection = sqlite:///{tmp_path}/precache.sqlite\n'
        f'[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n'
    )
    return tmp_path


@pytest.fixture
def run(
    directory: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs the command; it returns the exit code and each check's result."""
    monkeypatch.setattr('oslo_log.log.setup', lambda conf, product: None)
    monkeypatch.setattr(upgradecheck, 'CONF', None)
    conf = directory / 'nova-precache.conf'

    def command() -> tuple[int, dict[str, tuple[str, str | None]]]:
        argv = ['nova-precache-status', '--config-file', str(conf), 'upgrade', 'check', '--json']
        monkeypatch.setattr(sys, 'argv', argv)
        code = status._main()
        found = json.loads(capsys.readouterr().out)['checks']
        names = upgradecheck.UPGRADE_CHECK_MSG_MAP
        return code, {
            each['check']: (names[upgradecheck.Code(each['result'])], each['details'])
            for each in found
        }

    return command


@pytest.fixture
def site(directory: pathlib.Path) -> Iterator[session.Database]:
    """A database of this release, with one cell."""
    database = open_database(directory / 'precache.sqlite')
    schema.sync(database)
    inventory.Inventory(database).create_cell('cell1', 'fake:///cell1')
    yield database
    database.dispose()


def test_current_deployment_is_ready(run: Run, site: session.Database) -> None:
    agents.Agents(site, 60).register(_agent('host1', wiring_process.version()))
    _report(site, CONDUCTOR, API)

    assert run() == (0, dict.fromkeys(CHECKS, ('Success', None)))


@pytest.mark.filterwarnings("ignore:the 'ALL' constant is deprecated")  # upgradecheck's own
def test_results_are_a_table(
    run: Run,
    site: session.Database,
    directory: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _report(site, CONDUCTOR, API)
    conf = str(directory / 'nova-precache.conf')
    argv = ['nova-precache-status', '--config-file', conf, 'upgrade', 'check']
    monkeypatch.setattr(sys, 'argv', argv)

    assert status._main() == 0

    table = capsys.readouterr().out
    assert table.count('| Result: Success') == len(CHECKS)
    assert all(f'| Check: {check} ' in table for check in CHECKS)


def test_unsynced_database_is_failure(run: Run) -> None:
    code, found = run()

    assert code == 2
    assert found['Database schema'][0] == 'Failure'
    assert 'is at revision none' in str(found['Database schema'][1])
    assert 'run nova-precache-manage db sync' in str(found['Cells'][1])


@pytest.mark.parametrize(
    ('revision', 'code', 'said'),
    [
        ('0001', 2, 'The database is at revision 0001, but this release needs'),
        ('9999', 1, 'The database is at revision 9999, from a later release'),
    ],
)
def test_tables_of_other_release_reported(
    run: Run, site: session.Database, revision: str, code: int, said: str
) -> None:
    with site.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE {schema.VERSION_TABLE} SET version_num = '{revision}'"  # noqa: S608
        )

    found_code, found = run()

    assert found_code == code
    assert said in str(found['Database schema'][1])


def test_database_error_fails_check(run: Run, site: session.Database) -> None:
    with site.engine.begin() as connection:
        connection.exec_driver_sql('DROP TABLE agents')

    code, found = run()

    assert (code, found['Computes'][0], found['Cells'][0]) == (2, 'Failure', 'Success')
    assert 'no such table: agents' in str(found['Computes'][1])


def test_older_computes_are_warning(run: Run, site: session.Database) -> None:
    store = agents.Agents(site, 60)
    for number in range(7):
        store.register(_agent(f'old{number}', '0.0.0.dev1'))
    store.register(_agent('unknown', None))
    store.register(_agent('newer', '9999.0'))

    code, found = run()

    assert code == 1
    assert found['Computes'][0] == 'Warning'
    assert '8 of 9 computes are of an earlier release' in str(found['Computes'][1])
    assert 'old4 (0.0.0.dev1) and 3 more' in str(found['Computes'][1])


def test_unreadable_broker_fails_without_password(run: Run, site: session.Database) -> None:
    inventory.Inventory(site).create_cell('cell2', 'rabbit://user:s3/cret@broker/')

    code, found = run()

    assert code == 2
    result, details = found['Cells']
    assert result == 'Failure'
    assert re.fullmatch(
        r'Cells whose broker cannot be reached: cell2 \S+ \(the URL cannot be parsed\)\.',
        str(details),
    )


def test_no_conductor_yet_is_named(run: Run, site: session.Database) -> None:
    code, found = run()

    assert code == 0
    assert found['Conductors'] == (
        'Success',
        'No conductor has reported to this database yet.',
    )


def test_stopped_conductors_are_warning(run: Run, site: session.Database) -> None:
    _report(site, CONDUCTOR, API)
    services.Services(site, 60, 10).stop(CONDUCTOR.id)

    code, found = run()

    assert (code, found['Conductors'][0]) == (1, 'Warning')
    assert 'No conductor is up: ctl1 (stopped at 2' in str(found['Conductors'][1])


def test_silent_conductor_is_warning(run: Run, site: session.Database) -> None:
    other = dataclasses.replace(CONDUCTOR, id='c-2', host='ctl2')
    _report(site, CONDUCTOR, other)
    _silence(site, CONDUCTOR)

    code, found = run()

    assert code == 1
    assert found['Conductors'] == (
        'Warning',
        '1 of 2 conductors are not up: ctl1 (last report at 2001-01-01T00:00:00Z).',
    )


def test_stopped_conductor_beside_other_fits(run: Run, site: session.Database) -> None:
    other = dataclasses.replace(CONDUCTOR, id='c-2', host='ctl2')
    _report(site, CONDUCTOR, other)
    services.Services(site, 60, 10).stop(other.id)

    assert run()[1]['Conductors'] == ('Success', None)


def test_differing_services_are_warning(run: Run, site: session.Database) -> None:
    old = dataclasses.replace(CONDUCTOR, version='0.0.0.dev1')
    new = dataclasses.replace(API, version='9999.0')
    gone = dataclasses.replace(API, id='a-2', host='ctl3', version='0.0.0.dev1')
    _report(site, old, new, gone)
    services.Services(site, 60, 10).stop('a-2')

    code, found = run()

    result, details = found['Conductors and APIs']
    assert (code, result) == (1, 'Warning')
    earlier, later = str(details).split('. 1 of', 1)
    assert earlier.startswith('1 of 2 conductors and APIs are of an earlier release than ')
    assert earlier.endswith(': nova-precache-conductor on ctl1 (0.0.0.dev1)')
    assert 'nova-precache-api on ctl2 (9999.0). Restart them' in later


def test_unreachable_broker_is_warning(
    run: Run, site: session.Database, free_port: Callable[[], int]
) -> None:
    stock = inventory.Inventory(site)
    stock.create_cell('cell2', f'rabbit://user:s3cret@127.0.0.1:{free_port()}/')

    code, found = run()

    result, details = found['Cells']
    assert (code, result) == (1, 'Warning')
    assert 'cell2' in str(details)
    assert 'cell1' not in str(details)
    assert 's3cret' not in str(found)


def test_many_silent_brokers_are_asked_at_once(
    run: Run, site: session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reachability, 'ASK_SECONDS', 2)
    with socket.create_server(('127.0.0.1', 0), backlog=500) as silent:  # it answers nothing
        for number in range(100):
            url = f'rabbit://u:p@127.0.0.1:{silent.getsockname()[1]}/cell{number}'
            inventory.Inventory(site).create_cell(f'silent{number}', url)
        _, found = run()

    result, details = found['Cells']
    assert result == 'Warning'
    assert 'no answer from the broker in 2 s' in str(details)
    assert str(details).endswith('and 95 more.')


def test_unknown_broker_driver_is_failure(run: Run, site: session.Database) -> None:
    inventory.Inventory(site).create_cell('cell2', 'amqq://broker/')

    code, found = run()

    assert (code, found['Cells'][0]) == (2, 'Failure')
    assert "has the scheme 'amqq', but must begin with rabbit://" in str(found['Cells'][1])


def test_disabled_cells_are_not_asked(run: Run, site: session.Database) -> None:
    inventory.Inventory(site).create_cell('cell2', 'amqq://broker/')
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cell_mappings SET disabled = 1 WHERE name = 'cell2'")

    assert run()[1]['Cells'] == ('Success', None)


@pytest.mark.parametrize(
    ('url', 'backend', 'result', 'said'),
    [
        ('', 'agent', 'Success', 'None'),
        ('', 'nova', 'Failure', 'its mapping has no database URL'),
        ('sqlite:///{directory}/cell.sqlite', 'nova', 'Success', 'None'),
        ('sqlite:///{directory}/none.sqlite', 'nova', 'Warning', 'unable to open database file'),
        ('nonsense://user:s3cret@db/nova', 'nova', 'Failure', 'nonsense'),
        ('nonsense://user:s3cret@db/nova', 'agent', 'Warning', 'nonsense'),
        ('mysql+pymysql://user:s3cret@127.0.0.1:1/nova', 'nova', 'Warning', '127.0.0.1'),
    ],
)
def test_cell_databases_are_read(
    run: Run,
    site: session.Database,
    directory: pathlib.Path,
    url: str,
    backend: str,
    result: str,
    said: str,
) -> None:
    with contextlib.closing(sqlite3.connect(directory / 'cell.sqlite')) as made:
        made.execute(
            'CREATE TABLE services (host, binary, deleted, disabled, disabled_reason, '
            'forced_down, last_seen_up, created_at)'
        )
    with (directory / 'nova-precache.conf').open('a') as conf:
        conf.write(f'[image_cache]\ncompute_backend = {backend}\n')
    with site.engine.begin() as connection:
        connection.exec_driver_sql(
            'UPDATE cell_mappings SET database_connection = ?',
            (url.format(directory=directory),),
        )

    _, found = run()

    assert found['Cell databases'][0] == result
    assert said in str(found['Cell databases'][1])
    assert 's3cret' not in str(found)


def test_deployment_without_cell_is_warning(run: Run, site: session.Database) -> None:
    inventory.Inventory(site).delete_cell(inventory.Inventory(site).get_cell('cell1').uuid)

    assert run()[1]['Cells'][0] == 'Warning'


@pytest.mark.parametrize(
    ('text', 'check', 'result', 'said'),
    [
        ('{"context_is_admin": "role:admin"}', 'Policy file format', 'Failure', 'JSON-formatted'),
        ('"image_precache:requests:lst": "@"', 'Policy rules', 'Warning', 'requests:lst'),
        ('- no\n- rules\n', 'Policy rules', 'Failure', 'cannot be read'),
        # The file may be Nova's.
        ('"os_compute_api:servers:create": "@"', 'Policy rules', 'Success', 'None'),
        ('"image_precache:requests:list": "@"', 'Policy rules', 'Success', 'None'),
    ],
)
def test_ineffective_policy_file_reported(
    run: Run, site: session.Database, directory: pathlib.Path,
    text: str, check: str, result: str, said: str,
) -> None:  # fmt: skip
    (directory / 'policy.yaml').write_text(text)

    _, found = run()

    assert found[check][0] == result
    assert said in str(found[check][1])


def _report(site: session.Database, *processes: model.ServiceProcess) -> None:
    for process in processes:
        services.Services(site, 60, 10).report(process, replaces=False)


def _silence(site: session.Database, process: model.ServiceProcess) -> None:
    """Set its last report long into the past, while reports could be written."""
    with site.engine.begin() as connection:
        connection.execute(
            sa.update(models.Service)
            .where(models.Service.id == process.id)
            .values(seen_at=LONG_AGO, started_at=LONG_AGO)
        )
        connection.execute(sa.update(models.Hearing).values(since=LONG_AGO))


def _agent(host: str, version: str | None) -> model.Agent:
    return model.Agent(host, f'agent-{host}', 'cell-1', version=version)
