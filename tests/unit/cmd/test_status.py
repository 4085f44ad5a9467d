# SPDX-License-Identifier: Apache-2.0
"""nova-precache-status upgrade check: its findings and its exit code."""

import json
import pathlib
import sys
from collections.abc import Callable, Iterator

import pytest
from oslo_upgradecheck import upgradecheck

from nova_precache import model
from nova_precache.cells import inventory
from nova_precache.cmd import status
from nova_precache.db import agents
from nova_precache.db.engine import schema, session
from nova_precache.wiring import common
from tests.unit.conftest import open_database

Run = Callable[[], tuple[int, dict[str, tuple[str, str | None]]]]

CHECKS = ('Database schema', 'Policy file format', 'Policy rules', 'Cells', 'Computes')


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
    inventory.Inventory(database).create_cell('cell1', 'rabbit://user:s3cret@broker/')
    yield database
    database.dispose()


def test_current_deployment_is_ready(run: Run, site: session.Database) -> None:
    agents.Agents(site, 60).register(_agent('host1', common.version()))

    assert run() == (0, dict.fromkeys(CHECKS, ('Success', None)))


@pytest.mark.filterwarnings("ignore:the 'ALL' constant is deprecated")  # upgradecheck's own
def test_results_are_a_table(
    run: Run,
    site: session.Database,
    directory: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
    assert found['Cells'] == (
        'Failure',
        'Cells whose broker cannot be reached: cell2 (the URL cannot be parsed).',
    )


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


def _agent(host: str, version: str | None) -> model.Agent:
    return model.Agent(host, f'agent-{host}', 'cell-1', version=version)
