# SPDX-License-Identifier: Apache-2.0
"""Which hosts get the slots: urgent ones first, cells in turn, and slots given back in between."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import job_batch, jobs
from nova_precache.db.engine import models
from nova_precache.db.job import claim as job_claim, host_limits, share
from nova_precache.db.job_batch import NextJobRequest
from tests.unit.conftest import CACHED, LONG_AGO, World

LIMITED = model.RequestOptions(max_parallel_hosts=1)
SEEDS = range(6)


def _named(prefix: str, count: int) -> list[str]:
    return [f'{prefix}{number:03}' for number in range(count)]


def _hosts(claimed: Sequence[job_batch.Claimed]) -> list[str]:
    return [each.claim.host for each in claimed]


class SharedSlots:
    """Hosts of several cells under one limit, whose calls a test ends."""

    def __init__(self, world: World, limit: int) -> None:
        self.world = world
        self.limit = limit
        self.at_work: dict[str, jobs.Assignment] = {}
        self.avoided: tuple[str, ...] = ()

    def cell(self, name: str) -> str:
        return self.world.inventory.create_cell(name, 'fake://').uuid

    def slots(self, most: int | None = None) -> job_claim.Slots:
        return job_claim.Slots(self.limit, most or self.limit, self.avoided)

    def claim(self) -> list[str]:
        """Claim hosts until no slot or no work is left; return the hosts."""
        hosts: list[str] = []
        while claimed := self.world.jobs.claim_hosts('c1', self.limit, self.avoided, self.limit):
            for each in claimed:
                assert each.claim.host not in self.at_work
                assert each.first is not None
                self.at_work[each.claim.host] = each.first
            hosts += _hosts(claimed)
        assert len(self.at_work) <= self.limit
        assert self.world.claimed() == len(self.at_work)
        return hosts

    def end(self, *hosts: str, most: int | None = None) -> list[str]:
        """End the calls of hosts in one transaction; return the hosts that gave their slots."""
        ended = [
            NextJobRequest(
                'c1',
                host,
                jobs.Finish(self.at_work[host].job_id, self.at_work[host].epoch, CACHED),
                slots=self.slots(most),
            )
            for host in hosts
        ]
        batch = job_batch.Batch(next_jobs=ended)
        done = self.world.database.write(lambda s: job_batch.execute_batch(s, batch))
        for host, result in done.next_jobs.items():
            del self.at_work[host]
            assert (result.gave_way_to is None) or result.is_over
            if result.assignment is not None:
                self.at_work[host] = result.assignment
        return [host for host, result in done.next_jobs.items() if result.gave_way_to]

    def shares(self, *prefixes: str) -> list[int]:
        return [sum(host.startswith(each) for host in self.at_work) for each in prefixes]


@pytest.fixture
def fleet(world: World) -> SharedSlots:
    return SharedSlots(world, limit=16)


def test_cells_take_turns(fleet: SharedSlots) -> None:
    fleet.limit = 5
    fleet.world.planned(_named('a', 9), ['i1'])
    fleet.world.planned(_named('b', 9), ['i1'], fleet.cell('b'))

    assert fleet.claim() == ['a000', 'b000', 'a001', 'b001', 'a002']


def test_stalling_cell_keeps_its_share(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 99), ['i1'])
    fleet.world.planned(_named('b', 101), ['i1'], fleet.cell('b'))
    fleet.claim()
    assert fleet.shares('a', 'b') == [8, 8]

    ended = 0
    while fleet.shares('b') != [0]:
        fleet.end(next(host for host in fleet.at_work if host.startswith('b')))
        ended += 1
        fleet.claim()
        assert fleet.shares('a')[0] <= 8 or ended > 93

    assert ended == 101
    assert fleet.shares('a', 'b') == [16, 0]


def test_lone_cell_takes_all_slots(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 20), ['i1'])
    fleet.cell('b')

    assert len(fleet.claim()) == 16


def test_hosts_with_many_images_claimed_at_once(fleet: SharedSlots) -> None:
    other = fleet.cell('b')
    for prefix in ('i', 'j', 'k'):
        images = [f'{prefix}{number}' for number in range(3)]
        fleet.world.planned(_named('a', 12), images)
        fleet.world.planned(_named('b', 12), images, other)

    claimed = fleet.world.jobs.claim_hosts('c1', limit=16, most=16)

    assert sorted(_hosts(claimed)) == [*_named('a', 8), *_named('b', 8)]


def test_freed_slot_goes_to_least_loaded(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 20), ['i1'])
    fleet.claim()
    fleet.world.planned(_named('b', 3), ['i1'], fleet.cell('b'))
    fleet.world.planned(_named('c', 3), ['i1'], fleet.cell('c'))

    fleet.end(*list(fleet.at_work)[:4])

    assert fleet.claim() == ['b000', 'c000', 'b001', 'c001']


def test_higher_priority_beats_share(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 20), ['i1'], priority=1)
    fleet.world.planned(_named('b', 20), ['i1'], fleet.cell('b'))

    fleet.claim()

    assert fleet.shares('a', 'b') == [16, 0]


def test_urgent_hosts_get_next_slots(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 99), ['i1'])
    fleet.world.planned(_named('b', 101), ['i1'], other := fleet.cell('b'))
    fleet.claim()
    fleet.world.planned(['b050', 'b060'], ['top'], other, priority=5)

    fleet.end('b000')

    assert fleet.claim() == ['b050']


def test_transfers_of_any_cell_joined_first(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(['a1', 'a2', 'a3'], ['i1'])
    fleet.world.planned(['b1'], ['i1'], fleet.cell('b'), priority=9)
    fleet.world.change(models.Job, models.Job.host.in_(['a2', 'a3']), status='downloading')

    assert fleet.claim() == ['a2', 'a3', 'b1']


def test_avoided_cell_leaves_its_share(fleet: SharedSlots) -> None:
    fleet.limit = 4
    fleet.world.planned(_named('a', 9), ['i1'])
    fleet.world.planned(_named('b', 9), ['i1'], other := fleet.cell('b'))
    fleet.avoided = (other,)

    fleet.claim()

    assert fleet.shares('a', 'b') == [4, 0]


def test_new_cell_found_among_known(fleet: SharedSlots) -> None:
    fleet.limit = 6
    cells = sorted(fleet.cell(name) for name in 'bcd')
    for name, cell in zip('bd', (cells[0], cells[2]), strict=True):
        fleet.world.planned(_named(name, 9), ['i1'], cell)
    fleet.claim()
    fleet.world.planned(_named('c', 9), ['i1'], cells[1])

    fleet.end('b000', 'd000')

    assert fleet.claim() == ['c000', 'c001']


def test_urgent_host_gets_slot_between_images(fleet: SharedSlots) -> None:
    fleet.limit = 2
    low = fleet.world.planned(['a1', 'a2'], ['i1', 'i2', 'i3'])
    fleet.claim()
    urgent = fleet.world.planned(['u1'], ['i1'], priority=5)

    assert fleet.end('a1') == ['a1']
    assert fleet.claim() == ['u1']
    assert fleet.end('a2') == []

    statuses = fleet.world.statuses(low)
    assert (statuses['a1', 'i1'], statuses['a1', 'i2'], statuses['a1', 'i3']) == (
        'cached',
        'queued',
        'queued',
    )
    assert fleet.world.tasks(low)['a1', 'i2'].attempts == 0
    assert fleet.end('u1') == []
    assert fleet.claim() == ['a1']
    while fleet.at_work:
        fleet.end(*fleet.at_work)
        fleet.claim()
    assert set(fleet.world.statuses(low).values()) == {'cached'}
    assert set(fleet.world.statuses(urgent).values()) == {'cached'}
    assert {task.attempts for task in fleet.world.tasks(low).values()} == {1}


def test_each_urgent_host_frees_one_slot(fleet: SharedSlots) -> None:
    fleet.world.planned(_named('a', 20), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(_named('u', 10), ['i1'], priority=5)

    assert len(fleet.end(*fleet.at_work)) == 10
    assert fleet.claim() == _named('u', 10)


def test_free_slots_count_for_urgent_hosts(fleet: SharedSlots) -> None:
    """Transactions in a row release as many hosts as one for all."""
    fleet.world.planned(_named('a', 20), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(_named('u', 10), ['i1'], priority=5)

    released = [host for each in list(fleet.at_work) for host in fleet.end(each)]

    assert len(released) == 10
    assert fleet.claim() == _named('u', 10)


def test_free_slots_count_for_cells(fleet: SharedSlots) -> None:
    fleet.limit = 4
    fleet.world.planned(_named('a', 9), ['i1', 'i2'])
    fleet.claim()
    fleet.limit = 7
    fleet.world.planned(_named('b', 9), ['i1'], fleet.cell('b'))

    assert fleet.end('a000') == []
    assert fleet.claim() == ['b000', 'b001', 'b002']
    assert fleet.end('a000') == []


def test_host_goes_on_while_slots_are_free(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(['a1', 'a2'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=5)

    assert fleet.end('a1') == []
    assert fleet.end('a2') == []


def test_least_urgent_host_gives_way(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(['m1'], ['i1', 'i2'], priority=2)
    fleet.world.planned(['l1'], ['i1', 'i2'], priority=-1)
    fleet.world.planned(['h1'], ['i1', 'i2'], priority=4)
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=3)

    assert fleet.end('h1', 'm1', 'l1') == ['l1']


@pytest.mark.parametrize('priority', [0, -5])
def test_same_cell_keeps_its_hosts(fleet: SharedSlots, priority: int) -> None:
    fleet.limit = 1
    fleet.world.planned(['a1'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['a2'], ['i1'], priority=priority)

    assert fleet.end('a1') == []


def test_cell_over_share_gives_slots(fleet: SharedSlots) -> None:
    fleet.limit = 6
    fleet.world.planned(_named('a', 9), [f'i{number}' for number in range(3)])
    fleet.claim()
    fleet.world.planned(_named('b', 9), ['i1', 'i2'], fleet.cell('b'))

    gave = fleet.end(*fleet.at_work)

    assert len(gave) == 3
    assert fleet.claim() == ['b000', 'b001', 'b002']
    assert fleet.end(*fleet.at_work) == []
    assert fleet.shares('a', 'b') == [3, 3]


def test_one_slot_more_is_no_reason(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(_named('a', 4), ['i1', 'i2'])
    fleet.world.planned(_named('b', 4), ['i1', 'i2'], fleet.cell('b'))
    fleet.claim()
    assert fleet.shares('a', 'b') == [2, 1]

    assert fleet.end(*fleet.at_work) == []


def test_heaviest_cell_gives_slots_first(fleet: SharedSlots) -> None:
    fleet.limit = 8
    fleet.world.planned(_named('a', 5), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(_named('b', 3), ['i1', 'i2'], fleet.cell('b'))
    fleet.claim()
    assert fleet.shares('a', 'b') == [5, 3]
    fleet.world.planned(_named('c', 9), ['i1'], fleet.cell('c'))

    gave = fleet.end(*fleet.at_work)

    assert [host[0] for host in sorted(gave)] == ['a', 'a']
    fleet.claim()
    assert fleet.shares('a', 'b', 'c') == [3, 3, 2]


def test_host_stays_for_avoided_cell(fleet: SharedSlots) -> None:
    fleet.limit = 2
    fleet.world.planned(['a1', 'a2'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['b1'], ['i1'], other := fleet.cell('b'), priority=5)
    fleet.avoided = (other,)

    assert fleet.end('a1', 'a2') == []


def test_host_stays_for_unready_job(fleet: SharedSlots) -> None:
    fleet.limit = 1
    fleet.world.planned(['a1'], ['i1', 'i2', 'i3'])
    fleet.claim()
    urgent = fleet.world.planned(['u1', 'u2'], ['i1'], priority=5)
    later = sa.func.datetime('now', '+1 hour')
    fleet.world.change(
        models.Job, models.Job.host == 'u1', status='retry_wait', next_attempt_at=later
    )
    fleet.world.steering.pause(urgent.id)

    assert fleet.end('a1') == []


def test_host_stays_for_host_limit(fleet: SharedSlots) -> None:
    fleet.limit = 2
    fleet.world.planned(['u1', 'u2'], ['i1'], priority=5, options=LIMITED)
    fleet.world.planned(['a1'], ['i1', 'i2'])
    assert fleet.claim() == ['u1', 'a1']

    assert fleet.end('a1') == []


def test_host_stays_under_lowered_limit(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(_named('a', 3), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=5)
    fleet.limit = 2

    assert fleet.end('a000') == []


def test_single_probe_frees_single_slot(fleet: SharedSlots) -> None:
    fleet.limit = 3
    fleet.world.planned(_named('a', 3), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(_named('b', 3), ['i1'], fleet.cell('b'), priority=5)

    assert len(fleet.end(*fleet.at_work, most=1)) == 1


def test_single_probe_frees_one_slot_in_turn(fleet: SharedSlots) -> None:
    fleet.limit = 4
    fleet.world.planned(_named('a', 4), ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(_named('u', 4), ['i1'], fleet.cell('b'), priority=5)

    assert [fleet.end(host, most=1) for host in _named('a', 3)] == [['a000'], [], []]


def test_joined_call_never_given_up(fleet: SharedSlots) -> None:
    fleet.limit = 1
    fleet.world.planned(['a1'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=5)
    fleet.world.change(models.Job, models.Job.active_key == 'a1/i2', status='downloading')

    assert fleet.end('a1') == []


def test_repeated_call_never_given_up(fleet: SharedSlots) -> None:
    fleet.limit = 1
    fleet.world.planned(['a1'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=5)

    again = fleet.world.jobs.assign_again('c1', fleet.at_work['a1'])

    assert again is not None
    assert again.job_id == fleet.at_work['a1'].job_id


def test_lost_host_frees_no_slot(fleet: SharedSlots) -> None:
    fleet.limit = 2
    fleet.world.planned(['a1', 'a2'], ['i1', 'i2', 'i3'])
    fleet.claim()
    fleet.world.expire('a2')
    assert fleet.world.jobs.take_over('c2')
    fleet.world.planned(['u1'], ['i1'], priority=5)

    assert fleet.end('a1', 'a2') == ['a1']


def test_claim_takes_slot_in_same_batch(fleet: SharedSlots) -> None:
    fleet.limit = 1
    fleet.world.planned(['a1'], ['i1', 'i2'])
    fleet.claim()
    fleet.world.planned(['u1'], ['i1'], priority=5)

    done = _end_beside_claim(fleet, 'a1', fleet.slots())

    assert done.next_jobs['a1'].gave_way_to == 'u1'
    assert _hosts(done.claimed) == ['u1']
    assert fleet.world.claimed() == 1


@pytest.mark.parametrize('slots', [None, job_claim.Slots(4, 4)])
def test_slot_left_in_batch_of_claim_stays_in_cell(
    fleet: SharedSlots, slots: job_claim.Slots | None
) -> None:
    """Else a stalling cell would get it, and exceed its share."""
    fleet.limit = 4
    fleet.world.planned(_named('a', 4), ['i1'])
    fleet.world.planned(_named('b', 6), ['i1'], fleet.cell('b'))
    assert fleet.claim() == ['a000', 'b000', 'a001', 'b001']

    done = _end_beside_claim(fleet, 'b000', slots)

    assert done.next_jobs['b000'].is_over
    assert _hosts(done.claimed) == ['b002']


def _end_beside_claim(
    fleet: SharedSlots, host: str, slots: job_claim.Slots | None = None
) -> job_batch.BatchResult:
    """End the call of a host in the transaction that claims the next ones."""
    call = fleet.at_work[host]
    finish = jobs.Finish(call.job_id, call.epoch, CACHED)
    lease = fleet.world.jobs._lease
    batch = job_batch.Batch(
        next_jobs=[NextJobRequest('c1', host, finish, slots=slots)],
        claims=[job_claim.ClaimRequest('c1', fleet.limit, fleet.limit, (), lease)],
    )
    return fleet.world.database.write(lambda s: job_batch.execute_batch(s, batch))


def test_claims_are_bounded(fleet: SharedSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_claim, 'MOST_HOSTS', 3)
    fleet.world.planned(_named('a', 8), ['i1'])
    some = fleet.world.jobs.claim_hosts('c1', limit=9, most=9)
    rest = fleet.world.jobs.claim_hosts('c1', limit=9, most=9)
    fleet.world.change(models.Claim, sa.true(), lease_expires_at=sa.func.datetime('2001-01-01'))

    assert (len(some), len(rest)) == (3, 3)
    assert [len(fleet.world.jobs.take_over('c2')) for _ in range(3)] == [3, 3, 0]
    assert fleet.world.claimed() == 6


@pytest.mark.parametrize('seed', SEEDS)
def test_no_host_starves(fleet: SharedSlots, seed: int) -> None:
    """Random requests and outcomes: the limit holds, and every task is called in the end."""
    chance = random.Random(seed)
    fleet.limit = chance.randint(2, 6)
    cells = [fleet.cell(name) for name in 'bcd'[: chance.randint(1, 3)]]
    hosts = {f'{number}-{host}': cell for number, cell in enumerate(cells) for host in range(5)}
    asked: list[model.CacheRequest] = []
    for step in range(60):
        if step % 6 == 0 and len(asked) < 5:
            cell = chance.choice(cells)
            some = [host for host, of in hosts.items() if of == cell]
            images = [f'i{chance.randint(0, 9)}' for _ in range(3)]
            asked.append(
                fleet.world.planned(
                    chance.sample(some, 3),
                    sorted(set(images)),
                    cell,
                    priority=chance.choice([0, 0, 5]),
                )
            )
        fleet.claim()
        if fleet.at_work:
            count = chance.randint(1, len(fleet.at_work))
            fleet.end(*chance.sample(sorted(fleet.at_work), count))
    while fleet.claim() or fleet.at_work:
        fleet.end(*fleet.at_work)

    statuses = [status for each in asked for status in fleet.world.statuses(each).values()]
    assert set(statuses) == {'cached'}
    assert fleet.world.claimed() == 0


class _Counted:
    """The statements of a database with their plans, and SQLite's own count of its steps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.statements: list[str] = []
        self.plans: list[str] = []
        self.steps = 0

    def _note(self, connection: Any, cursor: Any, statement: str, values: Any, *rest: Any) -> None:
        if ' jobs' not in statement:
            return
        self.statements.append(statement)
        cursor.execute(f'EXPLAIN QUERY PLAN {statement}', values)
        self.plans += [row[3] for row in cursor.fetchall() if ' jobs ' in row[3]]
        connection.connection.dbapi_connection.set_progress_handler(self._step, 100)

    def _step(self) -> int:
        self.steps += 100
        return 0

    def of(self, count: int, least: int | None = None) -> tuple[int, int]:
        """Look for this many hosts; return the numbers of statements and of SQLite's steps."""
        known = share.KnownCells()
        engine = self._world.database.engine
        bound = None if least is None else lambda cell: least
        for _ in range(2):  # the cells are known at the second time
            self.statements.clear()
            self.steps = 0
            with self._world.database.reader() as reader:
                sa.event.listen(engine, 'before_cursor_execute', self._note)
                share.most_urgent(
                    reader, share.Search(count, (), {}, bound), host_limits.NONE, known
                )
                sa.event.remove(engine, 'before_cursor_execute', self._note)
        return len(self.statements), self.steps


@pytest.mark.usefixtures('handmade_rows')
@pytest.mark.parametrize('cells', [1, 20, 100])
def test_search_reads_few_of_many_jobs(world: World, cells: int) -> None:
    rows = [
        {
            'uuid': f'job-{number}',
            'active_key': f'h{number}/i1',
            'host': f'h{number}',
            'cell_uuid': f'cell-{number % cells}',
            'image_id': 'i1',
            'status': 'queued',
            'ready': True,
            'created_at': LONG_AGO,
        }
        for number in range(20_000)
    ]
    world.database.write(lambda s: s.execute(sa.insert(models.Job), rows))

    counted = _Counted(world)
    (one, one_steps), (many, many_steps) = counted.of(1), counted.of(200)
    (none, no_steps) = counted.of(16, least=1)

    branches = 1 + cells // 25
    assert one <= 3 + branches
    assert many <= 2 + branches + 2 * cells
    assert none <= branches
    assert one_steps < 10_000
    assert many_steps < 60_000
    assert no_steps < 10_000
    assert {each.split('(')[0].replace('COVERING ', '') for each in counted.plans} == {
        'SEARCH jobs USING INDEX jobs_share_idx ',
        'SEARCH jobs USING INDEX jobs_due_idx ',
    }
