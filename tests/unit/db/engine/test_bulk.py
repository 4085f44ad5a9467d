# SPDX-License-Identifier: Apache-2.0
"""A bulk write that the database refuses is repeated without the faulty rows; one that fails for
all is not repeated row by row.
"""

from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import exception, model
from nova_precache.db import agents, caches, jobs
from nova_precache.db.engine import session
from tests import statements
from tests.unit.conftest import LONG_AGO, World


class Writer:
    """Writes numbers except the bad ones."""

    def __init__(self, bad: set[int], error: Exception) -> None:
        self._bad = bad
        self._error = error
        self.attempts = 0
        self.written: list[int] = []
        self.refused: list[int] = []

    def write(self, some: Sequence[int]) -> int:
        self.attempts += 1
        if self._bad & set(some):
            raise self._error
        self.written += some
        return len(some)

    def refuse(self, member: int, error: Exception) -> None:
        assert error is self._error
        self.refused.append(member)


DATA = [
    db_exception.DBDataError(),
    db_exception.DBDuplicateEntry(),
    db_exception.DBReferenceError('t', 'c', 'k', 'k'),
    db_exception.DBInvalidUnicodeParameter(),
    sa.exc.DataError('UPDATE', {}, Exception()),
    db_exception.DBError(),
    sa.exc.OperationalError('UPDATE', {}, Exception('4025 CONSTRAINT failed')),
]


@pytest.mark.parametrize('error', DATA, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize('bad', [{0}, {999}, {3, 500, 501}])
def test_only_bad_rows_left_out(error: Exception, bad: set[int]) -> None:
    writer = Writer(bad, error)

    counts = session.in_bulk(range(1000), writer.write, writer.refuse)

    assert set(writer.written) == set(range(1000)) - bad
    assert writer.refused == sorted(bad)
    assert sum(counts) == 1000 - len(bad)
    assert writer.attempts < 70


@pytest.mark.parametrize(
    'error', [db_exception.DBConnectionError(), db_exception.DBDeadlock()], ids=['away', 'deadlock']
)
def test_outage_stops_row_by_row_attempts(error: Exception) -> None:
    writer = Writer(set(range(1000)), error)

    with pytest.raises(type(error)):
        session.in_bulk(range(1000), writer.write, writer.refuse)

    assert (writer.attempts, writer.refused) == (1, [])


@pytest.mark.parametrize('error', DATA[-2:], ids=['error', 'operational'])
def test_error_of_all_rows_raised(error: Exception) -> None:
    writer = Writer(set(range(1000)), error)

    with pytest.raises(type(error)):
        session.in_bulk(range(1000), writer.write, writer.refuse)

    assert writer.attempts < 30


def test_all_rows_may_be_bad_data() -> None:
    writer = Writer(set(range(40)), DATA[0])

    assert session.in_bulk(range(40), writer.write, writer.refuse) == []
    assert writer.refused == list(range(40))


@pytest.mark.parametrize(
    'error',
    [exception.DatabaseUnavailable('a lock', is_reached=True), db_exception.DBDeadlock()],
    ids=['lock', 'deadlock'],
)
def test_failed_chunk_loses_only_itself(error: Exception) -> None:
    writer = Writer({150}, error)

    with pytest.raises(type(error)):
        session.in_chunks(range(1000), 100, writer.write, writer.refuse)

    assert writer.written == [*range(100), *range(200, 1000)]
    assert (writer.attempts, writer.refused) == (10, [])


def test_outage_stops_further_chunks() -> None:
    writer = Writer({150}, exception.DatabaseUnavailable('away'))

    with pytest.raises(exception.DatabaseUnavailable):
        session.in_chunks(range(1000), 100, writer.write, writer.refuse)

    assert (writer.attempts, writer.written) == (2, [*range(100)])


def test_bad_rows_found_in_chunks() -> None:
    writer = Writer({3, 500, 501}, DATA[0])

    counts = session.in_chunks(range(1000), 100, writer.write, writer.refuse)

    assert (sum(counts), writer.refused) == (997, [3, 500, 501])


def test_no_rows_write_nothing() -> None:
    writer = Writer(set(), DATA[0])

    assert session.in_bulk([], writer.write, writer.refuse) == []
    assert writer.attempts == 0


# In the stores: these values pass no endpoint


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('value', [2**70, {'a': 1}, '\ud800'], ids=['large', 'object', 'surrogate'])
def test_refused_state_skipped_and_named_once(
    world: World, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    for host in ('h1', 'h2', 'h3'):
        world.living(host)
        world.dead(host)
    states = [
        model.Agent(host, f'agent-{host}', world.cell.uuid, free_bytes=5)
        for host in ('h1', 'h2', 'h3')
    ]
    states[1] = model.Agent('h2', 'agent-h2', world.cell.uuid, version=value)  # type: ignore[arg-type]
    if value == 2**70:
        states[1] = model.Agent('h2', 'agent-h2', world.cell.uuid, free_bytes=2**70)

    for _ in range(2):
        world.agents.report(states)

    assert set(world.agents.down(['h1', 'h2', 'h3'])) == {'h2'}
    named = [each for each in caplog.messages if each.startswith('Refused')]
    assert len(named) == 1
    assert named[0].startswith('Refused a report from host h2: ')


@pytest.mark.filterwarnings('ignore')
def test_refused_progress_loses_no_other_rows(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    begun = {each.host: each for each in (world.begun(), world.begun())}
    reports = [
        jobs.ProgressReport(
            begun[host].job_id, begun[host].epoch, 1, model.Progress('downloading', done, 100)
        )
        for host, done in (('h1', 40), ('h2', 2**70))
    ]
    store = caches.Caches(world.database)
    files = {
        host: model.CachedImage(host, 'a' * 40, None, size, 1, LONG_AGO)
        for host, size in (('h1', 5), ('h2', 2**70))
    }

    assert world.jobs.record_progress(reports) == 1
    store.record([caches.Report(host, [file], full=True) for host, file in files.items()])

    assert world.job(begun['h1'].job_id).bytes_done == 40
    assert world.job(begun['h2'].job_id).bytes_done == 0
    assert store.known_hosts() == {'h1'}
    named = [each.partition(':')[0] for each in caplog.messages if each.startswith('Refused')]
    assert named == [
        f'Refused progress from the host of job {begun["h2"].job_id}',
        'Refused an inventory from host h2',
    ]


def test_report_takes_one_statement(world: World) -> None:
    hosts = [f'h{number}' for number in range(50)]
    for host in hosts:
        world.living(host)

    with statements.recorded(world.database, 'UPDATE') as updates:
        world.agents.report([model.Agent(host, f'agent-{host}', world.cell.uuid) for host in hosts])

    assert len(updates) == 1
    assert agents.Agents(world.database, 60).down(hosts) == {}
