# SPDX-License-Identifier: Apache-2.0
"""Claimed hosts that release their Glance streams, and acquire them again within the limit."""

import pathlib
import shutil
import tempfile
from collections.abc import Callable

import hypothesis
import pytest
import sqlalchemy as sa
from hypothesis import strategies

from nova_precache.db import jobs
from nova_precache.db.engine import models
from nova_precache.db.job import claim as job_claim
from tests.unit.conftest import CACHED, World, open_in_haste, open_world
from tests.unit.db.test_share import SharedSlots

CONDUCTORS = ('c1', 'c2')
LIMIT = 2
IMAGES = ('i1', 'i2')
MOST_ROUNDS = 99


def in_use(world: World) -> dict[str, bool]:
    """Map the claimed hosts to whether they hold a stream; check the counter of hosts."""
    claim = models.Claim
    query = sa.select(claim.host, job_claim.holds_stream()).where(job_claim.held())
    with world.database.reader() as reader:
        held = {host: bool(holds) for host, holds in reader.execute(query)}
    assert world.claimed() == len(held)
    return held


class Fleet:
    """Two conductors and the hosts of two cells, which act one at a time.

    :ivar calls: the last call of each claimed host, with its conductor
    :ivar without: the claimed hosts that hold no stream
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.calls: dict[str, tuple[str, jobs.Assignment]] = {}
        self.without: set[str] = set()
        other = world.inventory.create_cell('b', 'fake://')
        world.planned(['a1', 'a2', 'a3'], IMAGES)
        world.planned(['b1', 'b2', 'b3'], IMAGES, other.uuid)

    @property
    def streams(self) -> int:
        return len(self.calls) - len(self.without)

    def claim(self, number: int) -> None:
        """Claim as many hosts as the limit permits."""
        conductor = CONDUCTORS[number % 2]
        for each in self.world.jobs.claim_hosts(conductor, LIMIT, most=LIMIT):
            assert each.first is not None
            self._call(conductor, each.first)

    def release_stream(self, number: int) -> None:
        if self.calls:
            host = self._one(number)
            assert self.world.jobs.release_stream(host, self._epoch(host))
            self.without.add(host)

    def acquire_stream(self, number: int) -> None:
        if self.calls:
            host = self._one(number)
            may = host not in self.without or self.streams < LIMIT
            assert self.world.jobs.acquire_stream(host, self._epoch(host), LIMIT) is may
            if may:
                self.without.discard(host)

    def ask_late(self, number: int) -> None:
        """Ask under the epoch of a call that a later one has replaced."""
        if self.calls:
            host = self._one(number)
            assert not self.world.jobs.release_stream(host, self._epoch(host) - 1)
            assert not self.world.jobs.acquire_stream(host, self._epoch(host) - 1, LIMIT)

    def end(self, number: int) -> None:
        """End a call, and begin the host's next one unless it is released."""
        if self.calls:
            host = self._one(number)
            conductor, call = self.calls.pop(host)
            ended = jobs.Finish(call.job_id, call.epoch, CACHED)
            slots = job_claim.Slots(LIMIT, LIMIT)
            self._next(conductor, self.world.jobs.next_job(conductor, host, ended, slots=slots))
            self.without &= self.calls.keys()

    def stop(self, number: int) -> None:
        """Stop a conductor, which leaves its calls to the next one."""
        conductor = CONDUCTORS[number % 2]
        self.world.jobs.release_all(conductor)
        self.calls = {host: each for host, each in self.calls.items() if each[0] != conductor}
        self.without &= self.calls.keys()

    def kill(self, number: int) -> None:
        """Kill a conductor; the other one takes over and calls its hosts again."""
        dead, other = CONDUCTORS[number % 2], CONDUCTORS[(number + 1) % 2]
        for host, (conductor, _) in self.calls.items():
            if conductor == dead:
                self.world.expire(host)
        for claim in self.world.jobs.take_over(other):
            assert claim.holds_stream is (claim.host not in self.without)
            assert self.calls.pop(claim.host)[0] == dead
            self._next(other, self.world.jobs.next_job(other, claim.host))
        assert dead not in {conductor for conductor, _ in self.calls.values()}

    def look(self) -> None:
        """Check that the claims are those expected, and no more streams than the limit."""
        assert in_use(self.world) == {host: host not in self.without for host in self.calls}
        assert self.streams <= LIMIT

    def complete(self) -> None:
        """Do the rest, if each host without a stream waits until it gets one."""
        for number in range(MOST_ROUNDS):
            if not self.world.depth():
                break
            self.claim(number)
            for host in range(len(self.calls)):
                self.acquire_stream(host)
            holding = sorted(self.calls.keys() - self.without)
            assert holding, 'every host waits for a stream'
            self.end(sorted(self.calls).index(holding[number % len(holding)]))
            self.look()
        assert not self.calls

    def _one(self, number: int) -> str:
        return sorted(self.calls)[number % len(self.calls)]

    def _epoch(self, host: str) -> int:
        return self.calls[host][1].epoch

    def _next(self, conductor: str, result: jobs.NextJobResult) -> None:
        if result.assignment is not None:
            self._call(conductor, result.assignment)
        else:
            assert result.is_over

    def _call(self, conductor: str, call: jobs.Assignment) -> None:
        assert call.host not in self.calls
        self.calls[call.host] = conductor, call
        assert self.world.jobs.begin(call.job_id, call.epoch)


STEPS: tuple[Callable[[Fleet, int], None], ...] = (
    Fleet.claim,
    Fleet.release_stream,
    Fleet.acquire_stream,
    Fleet.end,
    Fleet.ask_late,
    Fleet.stop,
    Fleet.kill,
)
# A step, and the conductor or the host that takes it.
ANY_ORDER = strategies.lists(
    strategies.tuples(strategies.sampled_from(STEPS), strategies.integers(0, 5)), max_size=30
)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(steps=ANY_ORDER)
def test_streams_within_limit_in_any_order(
    empty_database: pathlib.Path, steps: list[tuple[Callable[[Fleet, int], None], int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(shutil.copy(empty_database, directory))
        with open_in_haste(path) as database:
            fleet = Fleet(open_world(database))
            for step, number in steps:
                step(fleet, number)
                fleet.look()
            fleet.complete()


def _called(world: World, conductor: str = 'c1', limit: int = 1) -> jobs.Assignment:
    (claimed,) = world.jobs.claim_hosts(conductor, limit)
    assert claimed.first is not None
    return claimed.first


def test_released_stream_lets_next_host_in(world: World) -> None:
    world.planned(['h1', 'h2', 'h3'], ['i1'])
    first = _called(world)
    assert world.claim('c2', limit=1) is None

    assert world.jobs.release_stream(first.host, first.epoch)
    second = _called(world, 'c2')

    assert in_use(world) == {'h1': False, 'h2': True}
    assert not world.jobs.acquire_stream(first.host, first.epoch, limit=1)
    assert world.jobs.release_stream(second.host, second.epoch)
    assert world.jobs.acquire_stream(first.host, first.epoch, limit=1)
    assert in_use(world) == {'h1': True, 'h2': False}


def test_host_keeps_reading_from_others_in_its_next_calls(world: World) -> None:
    world.planned(['h1'], ['i1', 'i2'])
    first = _called(world)
    world.jobs.release_stream('h1', first.epoch)

    ended = jobs.Finish(first.job_id, first.epoch, CACHED)
    assert world.jobs.next_job('c1', 'h1', ended).assignment is not None

    assert world.jobs.claims('c1') == [
        job_claim.Claim('h1', world.cell.uuid, first.epoch + 1, holds_stream=False)
    ]


def test_host_claimed_again_holds_stream(world: World) -> None:
    world.planned(['h1'], ['i1'])
    world.jobs.release_stream('h1', _called(world).epoch)
    world.jobs.release('c1', ['h1'])

    _called(world)

    assert in_use(world) == {'h1': True}


def test_slot_not_wanted_from_host_without_stream(world: World) -> None:
    """Neither does it give way to a more urgent host, nor does a slow transfer give it up."""
    world.planned(['h1'], ['i1', 'i2'])
    first = _called(world)
    world.planned(['urgent'], ['i1'], priority=9)
    assert world.jobs.others_wait(first.job_id, first.epoch)
    world.planned(['more urgent'], ['i1'], priority=99)
    world.jobs.release_stream('h1', first.epoch)
    assert _called(world).host == 'more urgent'

    assert not world.jobs.others_wait(first.job_id, first.epoch)
    ended = jobs.Finish(first.job_id, first.epoch, CACHED)
    result = world.jobs.next_job('c1', 'h1', ended, slots=job_claim.Slots(limit=1, most=1))
    assert result.gave_way_to is None
    assert not result.is_over


def test_cells_share_streams_not_hosts(world: World) -> None:
    """A cell whose hosts read from each other does not lose its turn to one that cannot."""
    fleet = SharedSlots(world, limit=4)
    world.planned([f'a{number}' for number in range(9)], ['i1'])
    for host in fleet.claim()[:3]:
        world.jobs.release_stream(host, fleet.at_work[host].epoch)
    world.planned([f'b{number}' for number in range(9)], ['i1'], fleet.cell('b'))

    claimed = world.jobs.claim_hosts('c1', fleet.limit, most=fleet.limit)

    assert [each.claim.host for each in claimed] == ['b0', 'a4', 'b1']


# Beside a conductor of the release before, which knows no streams


def _take_over_as_before(world: World, host: str, conductor: str = 'old') -> None:
    """Lease a host by the statement of the release before."""
    claim = models.Claim
    values = {'conductor_id': conductor, 'epoch': claim.epoch + 1}
    world.change(claim, claim.host == host, **values)


def test_claim_of_release_before_holds_stream(world: World) -> None:
    row = {'host': 'h1', 'cell_uuid': world.cell.uuid, 'conductor_id': 'old', 'epoch': 1}
    columns = [sa.column(name) for name in row]
    made = sa.insert(sa.table('claims', *columns)).values(**row)
    world.database.write(lambda writer: writer.execute(made))
    world.planned(['h2'], ['i1'])

    assert world.claim('c1', limit=1) is None


@pytest.mark.parametrize('is_released_first', [True, False])
def test_host_of_release_before_holds_stream_again(world: World, is_released_first: bool) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    world.jobs.release_stream('h1', _called(world).epoch)
    if is_released_first:
        world.jobs.release('c1', ['h1'])

    _take_over_as_before(world, 'h1')

    assert world.claim('c1', limit=1) is None
    assert [claim.holds_stream for claim in world.jobs.claims('old')] == [True]
    world.expire('h1')
    assert [claim.holds_stream for claim in world.jobs.take_over('c1')] == [True]


def test_other_host_without_stream_stays_so_beside_takeover(world: World) -> None:
    world.planned(['h1', 'h2'], ['i1'])
    for each in world.jobs.claim_hosts('c1', limit=2, most=2):
        world.expire(each.claim.host)
    world.jobs.release_stream('h2', epoch=1)

    taken = {claim.host: claim.holds_stream for claim in world.jobs.take_over('c2')}

    assert taken == in_use(world) == {'h1': True, 'h2': False}
