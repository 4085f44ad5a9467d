# SPDX-License-Identifier: Apache-2.0
"""The search for secrets finds them where they must not be, and only there."""

import pathlib
import subprocess

import pytest

from nova_precache.cells import inventory
from nova_precache.db.engine import session
from tests import leaks
from tests.leaks import Leak, Secrets


@pytest.fixture
def secrets() -> Secrets:
    return Secrets()


def test_secret_in_log_reported_by_name(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    password = secrets.make('password of the broker')
    secrets.make('token')
    (tmp_path / 'host1').mkdir()
    (tmp_path / 'host1' / 'compute.log').write_text(f'connecting to rabbit://u:{password}@h/')
    (tmp_path / 'api.log').write_text('nothing')

    found = secrets.leaks(tmp_path)

    assert found == [Leak('host1/compute.log', 'password of the broker')]
    assert password not in repr(found)


def test_unsearched_log_is_reported(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    searched, empty, elsewhere = (
        secrets.expect(tmp_path / name) for name in ('logs/api.log', 'logs/empty.log', 'other.log')
    )
    searched.parent.mkdir()
    searched.write_text('nothing')
    empty.touch()
    elsewhere.write_text('nothing')
    assert secrets.missed() == []  # no secret is used

    secrets.make('token')
    secrets.leaks(searched.parent)

    assert secrets.missed() == [empty, elsewhere]


def test_secret_across_chunks_found(
    secrets: Secrets, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, '_CHUNK', 40)
    for at in range(30, 45):
        token = secrets.make(f'token at {at}')
        (tmp_path / f'{at}.log').write_text('x' * at + token + 'x' * 100)

    assert {leak.what for leak in secrets.leaks(tmp_path)} == {
        f'token at {at}' for at in range(30, 45)
    }


def test_configuration_may_hold_secrets(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    password = secrets.make('password')
    (tmp_path / 'nova-precache.conf').write_text(f'password = {password}')

    assert secrets.leaks(tmp_path) == []


def test_secrets_allowed_only_in_cell_mappings(
    secrets: Secrets, database: session.Database, database_path: pathlib.Path
) -> None:
    password = secrets.make('password')
    cells = inventory.Inventory(database)
    cells.create_cell('cell1', f'rabbit://u:{password}@h/')
    assert secrets.leaks(database_path.parent) == []

    cells.create_aggregate(f'named {password}')  # it is only in the write-ahead log

    assert secrets.leaks(database_path.parent) == [Leak(database_path.name, 'password')]


def test_database_of_other_service_ignored(
    secrets: Secrets, database: session.Database, database_path: pathlib.Path
) -> None:
    password = secrets.make('password')
    inventory.Inventory(database).create_aggregate(f'named {password}')
    with database.engine.begin() as connection:
        connection.exec_driver_sql('ALTER TABLE cache_requests RENAME TO other')

    assert secrets.leaks(database_path.parent) == []


def test_captured_test_output_searched(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    token = secrets.make('token')

    secrets.look_into(f'X-Auth-Token: {token}', 'test_it, captured log')

    assert secrets.leaks(tmp_path) == [Leak('test_it, captured log', 'token')]


def test_both_command_outputs_searched(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    first, second = secrets.make('password'), secrets.make('token')
    ended = subprocess.CompletedProcess(['/bin/show', 'it'], 1, f'<{first}>', f'<{second}>')

    assert secrets.look_at(ended) is ended
    assert secrets.leaks(tmp_path) == [
        Leak('the output of show', 'password'),
        Leak('the output of show', 'token'),
    ]


def test_non_secret_cannot_be_registered(secrets: Secrets, tmp_path: pathlib.Path) -> None:
    with pytest.raises(AssertionError, match='by accident'):
        secrets.note('secret', 'password')
    (tmp_path / 'api.log').write_text('secret')
    assert secrets.leaks(tmp_path) == []
