# SPDX-License-Identifier: Apache-2.0
"""How a pin is filled between two rounds: as slots become free, whatever else goes on."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.conductor import pin_loop, pins as keeping, tracker
from nova_precache.db import agents, caches, pins, requests
from nova_precache.db.engine import models, session
from tests.unit.conductor.conftest import POLICY, Parts
from tests.unit.conftest import BROKEN, LONG_AGO
from tools.waiting import TIMEOUT_SECONDS

SLOTS = 4
# No failed host is called again while a test runs.
PATIENT = dataclasses.replace(POLICY, delay_seconds=3600, max_delay_seconds=3600)
FAR_AHEAD = datetime.datetime(2100, 1, 1)  # noqa: DTZ001 - as the database keeps it
RULES = keeping.PinRules(interval_seconds=60, slots=SLOTS, minimum_age_seconds=24 * 3600)


@dataclasses.dataclass
class Fleet:
    """Conductors that keep pins, with real plans, claims and outcomes, and a clock that stands."""

    parts: Parts
    pins: pins.Pins
    ended: pin_loop.EndedPins = dataclasses.field(default_factory=pin_loop.EndedPins)
    rules: keeping.PinRules = RULES
    most_outstanding: int = 0
    away: set[str] = dataclasses.field(default_factory=set)

    def keeper(
        self, conductor: str = 'c1', request_store: requests.Requests | None = None
    ) -> keeping.Reconciler:
        world = self.parts.world
        return keeping.Reconciler(
            conductor_id=conductor,
            request_store=request_store or world.requests,
            pin_store=self.pins,
            cache_store=caches.Caches(world.database),
            aggregates=world.inventory,
            alive=world.agents,
            images=self.parts.images,
            rules=self.rules,
            wake=lambda: None,
            clock=lambda: self.parts.now[0],
        )

    def pin(
        self,
        name: str,
        hosts: int,
        images: int = 1,
        cells: Sequence[model.Cell] = (),
        **fields: Any,
    ) -> model.Pin:
        """Pin new images to a new aggregate of living hosts, such as ``a0``, ``a1``.

        :param cells: of the hosts, in turns; by default the world's cell
        """
        world = self.parts.world
        made = tuple(self.parts.images.add(b'some data').id for _ in range(images))
        aggregate = world.inventory.create_aggregate(f'aggregate-{name}')
        for number, cell in zip(range(hosts), itertools.cycle(cells or [world.cell])):
            world.living(f'{name}{number}', cell)
            aggregate = world.inventory.add_host(aggregate.id, f'{name}{number}')
        new = {'aggregate': aggregate, 'images': made, 'project_id': 'p1', **fields}
        return self.pins.create(pins.NewPin(**new))

    def cell(self) -> model.Cell:
        """Make another cell, which is heard as the world's cell is."""
        world = self.parts.world
        made = world.inventory.create_cell('cell2', 'fake:///cell2')
        self._hear(world.cell, made)
        return made

    def silence(self, cell: model.Cell) -> None:
        """Make a cell unreachable for all conductors."""
        is_it = models.Hearing.cell_uuid == cell.uuid
        self.parts.world.change(models.Hearing, is_it, until=LONG_AGO)
        self.away.add(cell.uuid)

    def hear_again(self, cell: model.Cell) -> None:
        self._hear(cell)
        self.away.discard(cell.uuid)

    def _hear(self, *cells: model.Cell) -> None:
        """Hear cells until they are silenced, however long the test takes."""
        uuids = [cell.uuid for cell in cells]
        self.parts.world.hears(*uuids)
        is_one = models.Hearing.cell_uuid.in_(uuids)
        self.parts.world.change(models.Hearing, is_one, until=FAR_AHEAD)

    def plan(self) -> None:
        """Plan every request, and note how many hosts are outstanding."""
        while self.parts.planning().plan_next(lambda: False):
            pass
        self.most_outstanding = max(self.most_outstanding, sum(self.pins.load().hosts.values()))

    def image_time(self) -> list[str]:
        """Call as many hosts as there are slots, each for all its images; return their names."""
        self.plan()
        slots = self.rules.slots
        avoided = self.away.union(self.parts.breakers.avoid())
        claimed = self.parts.world.jobs.claim_hosts('c1', slots, avoided, slots)
        for each in claimed:
            self.parts.caller().serve(each.claim, lambda: False, each.first)
        return [each.claim.host for each in claimed]

    def fill(self, keeper: keeping.Reconciler) -> list[int]:
        """Top up and call until nothing is left; return the number of hosts of each image time."""
        called = []
        keeper.run()
        while hosts := self.image_time():
            called.append(len(hosts))
            keeper.run(self.ended.take())
        return called

    def asked(self, pin: model.Pin) -> Sequence[models.CacheRequest]:
        """Return the requests of a pin, oldest first."""
        row = models.CacheRequest
        with self.parts.world.database.reader() as reader:
            return reader.scalars(
                sa.select(row).where(row.pin_id == pin.id).order_by(row.number)
            ).all()

    def files(self, pin: model.Pin) -> list[tuple[str, str]]:
        """Return each file that the pin has requested, as often as it has."""
        return [
            (host, image)
            for request in self.asked(pin)
            for host in request.hosts or ()
            for image in request.images
        ]

    def hosts(self, pin: model.Pin) -> list[str]:
        return [host for host, _ in self.files(pin)]


@pytest.fixture
def fleet(parts: Parts) -> Fleet:
    made = Fleet(parts, pins.Pins(parts.world.database))
    parts.tracker = tracker.Tracker(
        parts.world.jobs,
        parts.world.requests,
        parts.steering,
        announce=lambda: None,
        policy=PATIENT,
        ended_of_pin=made.ended.add,
    )
    return made


# One pin


def test_slots_stay_busy_until_filled(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=21)
    keeper = fleet.keeper()

    assert fleet.fill(keeper) == [4, 4, 4, 4, 4, 1]

    assert fleet.hosts(pin) == [f'a{n}' for n in range(21)]
    assert fleet.most_outstanding == 2 * SLOTS
    assert {request.status for request in fleet.asked(pin)} == {'completed'}
    assert len(fleet.asked(pin)) == 5  # several hosts at once, as slots become free


def test_single_slot_stays_busy(fleet: Fleet) -> None:
    fleet.rules = dataclasses.replace(RULES, slots=1)
    pin = fleet.pin('a', hosts=5, images=2)

    assert fleet.fill(fleet.keeper()) == [1] * 5

    assert len(fleet.files(pin)) == len(set(fleet.files(pin))) == 10
    assert fleet.most_outstanding == 2


def test_filling_needs_one_round(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=12)
    keeper = fleet.keeper()
    keeper.run()
    checked_at = fleet.pins.get(pin.id).checked_at

    fleet.fill(keeper)

    assert len(fleet.hosts(pin)) == 12
    assert fleet.pins.get(pin.id).checked_at == checked_at


def test_nothing_requested_while_share_is_outstanding(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()

    for _ in range(3):  # its hosts wait behind other work
        keeper.run([pin.id])
        fleet.plan()

    assert len(fleet.hosts(pin)) == 2 * SLOTS


def test_users_request_is_served_first(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    users = [f'user{n}' for n in range(6)]
    image_id = fleet.parts.images.add(b'other data').id
    fleet.parts.world.requests.accept(
        requests.NewRequest(aggregate=fleet.parts.world.aggregate(users), images=(image_id,))
    )

    called = fleet.image_time() + fleet.image_time()
    keeper.run(fleet.ended.take())

    assert called[:6] == users
    assert len(fleet.hosts(pin)) == 2 * SLOTS


def test_running_keeper_polls_while_filling(fleet: Fleet) -> None:
    fleet.pin('a', hosts=9)
    keeper = fleet.keeper()
    keeper.run()
    assert keeper.seconds_to_wait(5) == 5
    fleet.parts.now[0] += 58
    assert keeper.seconds_to_wait(5) == 2

    fleet.fill(keeper)

    assert keeper.seconds_to_wait(0.5) == 2


# Stuck and failing hosts


def test_stuck_host_delays_no_other(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=13)
    [image_id] = pin.images
    compute = fleet.parts.compute
    compute.script('a0', image_id, compute.answers(BROKEN))

    assert fleet.fill(fleet.keeper()) == [4, 4, 4, 1]

    assert sorted(fleet.hosts(pin)) == sorted(f'a{n}' for n in range(13))
    assert [request.status for request in fleet.asked(pin)].count('running') == 1


def test_stuck_rack_delays_no_other(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    compute = fleet.parts.compute
    for host in range(10):
        compute.script(f'a{host}', pin.images[0], compute.answers(BROKEN))

    assert fleet.fill(fleet.keeper()) == [4] * 5

    assert len(fleet.hosts(pin)) == len(set(fleet.hosts(pin))) == 20
    assert fleet.pins.load() == pins.PinLoad({}, frozenset())


def test_stuck_host_not_requested_again(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=2)
    compute = fleet.parts.compute
    compute.script('a0', pin.images[0], compute.answers(BROKEN))
    keeper = fleet.keeper()
    fleet.fill(keeper)

    for _ in range(3):
        fleet.parts.now[0] += 61
        fleet.parts.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)
        fleet.fill(keeper)

    assert fleet.hosts(pin) == ['a0', 'a1']
    assert fleet.pins.load().hosts == {}


def test_host_down_since_round_left_out(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=16)
    keeper = fleet.keeper()
    keeper.run()
    fleet.parts.world.dead('a9')

    fleet.fill(keeper)

    assert sorted(fleet.hosts(pin)) == sorted(f'a{n}' for n in range(16) if n != 9)


def test_down_hosts_delay_no_other(fleet: Fleet) -> None:
    stuck = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    for host in range(20):
        fleet.parts.world.dead(f'a{host}')
    live = fleet.pin('b', hosts=12)
    fleet.parts.now[0] += 61

    fleet.fill(keeper)

    assert len(fleet.hosts(live)) == 12
    assert len(fleet.hosts(stuck)) == 2 * SLOTS  # those are not requested again
    assert fleet.pins.load().hosts == {}


# Cells that cannot be called, or that no conductor hears


def test_uncallable_cell_delays_no_other(fleet: Fleet) -> None:
    cell = fleet.cell()
    stuck = fleet.pin('a', hosts=20, cells=[cell])
    compute = fleet.parts.compute
    for host in range(20):
        compute.script(
            f'a{host}', stuck.images[0], compute.fails(exception.CellUnreachable('no answer'))
        )
    keeper = fleet.keeper()
    keeper.run()
    fleet.image_time()
    assert fleet.pins.load() == pins.PinLoad({}, frozenset())  # all of them wait for a while
    live = fleet.pin('b', hosts=12)
    fleet.parts.now[0] += 61

    fleet.fill(keeper)

    assert len(fleet.hosts(live)) == 12


def test_unheard_cell_delays_no_other(fleet: Fleet) -> None:
    cell = fleet.cell()
    stuck = fleet.pin('a', hosts=20, cells=[cell])
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    fleet.silence(cell)
    live = fleet.pin('b', hosts=12)
    fleet.parts.now[0] += 61

    assert fleet.fill(keeper) == [4, 4, 4]

    assert (len(fleet.hosts(stuck)), len(fleet.hosts(live))) == (2 * SLOTS, 12)
    assert fleet.pins.load() == pins.PinLoad({}, frozenset(), frozenset({cell.uuid}))


def test_pin_fills_its_heard_cell(fleet: Fleet) -> None:
    cell = fleet.cell()
    pin = fleet.pin('a', hosts=40, cells=[cell, fleet.parts.world.cell])
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    fleet.silence(cell)

    assert sum(fleet.fill(keeper)) == 20

    asked = {int(host.removeprefix('a')) for host in fleet.hosts(pin)}
    assert {number for number in asked if number % 2} == set(range(1, 40, 2))
    assert len(fleet.hosts(pin)) == 20 + SLOTS  # half of the first request


def test_cell_heard_again_is_not_flooded(fleet: Fleet) -> None:
    cell = fleet.cell()
    pin = fleet.pin('a', hosts=20, cells=[cell])
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    fleet.silence(cell)
    keeper.run([pin.id])
    fleet.hear_again(cell)

    keeper.run([pin.id])
    assert fleet.pins.load().hosts == {pin.id: 2 * SLOTS}
    assert len(fleet.hosts(pin)) == 2 * SLOTS

    assert fleet.fill(keeper) == [4] * 5
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20
    assert fleet.most_outstanding == 2 * SLOTS


def test_flapping_cell_gathers_no_requests(fleet: Fleet) -> None:
    cell = fleet.cell()
    stuck, live = fleet.pin('a', hosts=40, cells=[cell]), fleet.pin('b', hosts=40)
    keeper = fleet.keeper()
    keeper.run()
    for _ in range(4):
        fleet.plan()
        fleet.silence(cell)
        for _ in range(2):
            keeper.run([live.id])
            fleet.plan()
        fleet.hear_again(cell)
        keeper.run([stuck.id])

    assert (len(fleet.hosts(stuck)), len(fleet.hosts(live))) == (SLOTS, 2 * SLOTS)


def test_hosts_wait_until_cell_is_heard(fleet: Fleet) -> None:
    cell = fleet.cell()
    fleet.silence(cell)
    pin = fleet.pin('a', hosts=6, cells=[cell, fleet.parts.world.cell])
    keeper = fleet.keeper()
    fleet.fill(keeper)
    assert fleet.hosts(pin) == ['a1', 'a3', 'a5']
    unreached = f'hosts not reached: 3, such as a0: {agents.UNHEARD}'
    assert fleet.pins.get(pin.id).reason == unreached
    assert keeper.seconds_to_wait(5) == 5

    fleet.hear_again(cell)
    assert fleet.fill(keeper) == [3]

    assert fleet.hosts(pin)[3:] == ['a0', 'a2', 'a4']
    assert keeper.seconds_to_wait(5) == 60


def test_pin_over_forgets_unheard_hosts(fleet: Fleet) -> None:
    cell = fleet.cell()
    fleet.silence(cell)
    pin = fleet.pin('a', hosts=6, cells=[cell])
    keeper = fleet.keeper()
    keeper.run()
    fleet.pins.end(pin.id, 'enough')
    fleet.hear_again(cell)

    fleet.fill(keeper)

    assert fleet.asked(pin) == []
    assert keeper.seconds_to_wait(5) == 60


# Several pins


def test_pins_share_slots_equally(fleet: Fleet) -> None:
    one, other = fleet.pin('a', hosts=16), fleet.pin('b', hosts=16)
    keeper = fleet.keeper()
    keeper.run()
    assert len(fleet.hosts(one)) == len(fleet.hosts(other)) == SLOTS

    assert fleet.fill(keeper) == [4] * 8

    numbers = [sum(r.pin_id == one.id for r in fleet.asked(pin)) for pin in (one, other)]
    assert numbers[1] == 0
    assert len(set(fleet.hosts(one))) == len(set(fleet.hosts(other))) == 16
    assert fleet.most_outstanding == 2 * SLOTS


def test_late_pin_gets_its_share(fleet: Fleet) -> None:
    one = fleet.pin('a', hosts=32)
    keeper = fleet.keeper()
    keeper.run()
    late = fleet.pin('b', hosts=32)
    fleet.parts.now[0] += 61

    for _ in range(4):
        keeper.run(fleet.ended.take())
        fleet.image_time()
    keeper.run(fleet.ended.take())

    assert fleet.pins.load().hosts == {one.id: SLOTS, late.id: SLOTS}
    assert fleet.most_outstanding == 2 * SLOTS


def test_more_pins_than_slots_take_turns(fleet: Fleet) -> None:
    fleet.rules = dataclasses.replace(RULES, slots=1)
    made = [fleet.pin(name, hosts=3) for name in ('a', 'b', 'c', 'd', 'e')]
    keeper = fleet.keeper()
    keeper.run()
    for _ in range(5):
        fleet.image_time()
        keeper.run(fleet.ended.take())

    assert [len(fleet.hosts(pin)) for pin in made] == [2, 2, 1, 1, 1]
    assert fleet.most_outstanding == 2
    assert sum(fleet.fill(keeper)) == 10


def test_long_round_delays_no_top_up(fleet: Fleet) -> None:
    filling = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.image_time()
    fleet.parts.now[0] += 61
    late = [fleet.pin(name, hosts=1) for name in ('b', 'c', 'd')]
    show, requested = fleet.parts.images.show, {}

    def slow(image_id: str) -> model.Image:
        fleet.parts.now[0] += 2
        requested.setdefault(image_id, len(fleet.hosts(filling)))
        return show(image_id)

    fleet.parts.images.show = slow  # type: ignore[method-assign]
    keeper.run(fleet.ended.take())

    assert requested[late[2].images[0]] > 2 * SLOTS


@pytest.mark.parametrize(
    ('outstanding', 'filling', 'slots', 'expected'),
    [
        ({}, ['p'], 1, 2),
        ({'p': 1}, ['p'], 1, 1),
        ({'p': 2}, ['p'], 1, 0),
        ({'p': 4}, ['p'], 4, 4),
        ({'p': 5}, ['p'], 4, 0),
        ({}, ['p', 'q'], 4, 4),
        ({'q': 8}, ['p', 'q'], 4, 0),
        ({'q': 6}, ['p', 'q'], 4, 2),
        ({'ended': 1}, ['p'], 4, 4),
        ({'q': 1}, ['p', 'q', 'r'], 1, 1),
        ({'q': 1, 'r': 1}, ['p', 'q', 'r'], 1, 0),
        ({'q': 9, 'r': 9}, ['p'], 1, 0),
    ],
)
def test_room_follows_share_and_total(
    outstanding: dict[str, int], filling: list[str], slots: int, expected: int
) -> None:
    assert keeping.room('p', outstanding, filling, slots) == expected


# What a user does meanwhile


def test_paused_request_holds_its_pin(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.plan()
    [request] = fleet.asked(pin)
    fleet.parts.steering.pause(request.id)
    keeper.run([pin.id])
    fleet.parts.now[0] += 61
    fleet.parts.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)
    keeper.run()

    assert len(fleet.asked(pin)) == 1
    assert fleet.pins.get(pin.id).reason == f'request {request.id} is paused'

    fleet.parts.steering.resume(request.id)
    fleet.fill(keeper)
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20


def test_pause_before_plan_delays_no_other(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    [request] = fleet.asked(pin)
    fleet.parts.steering.pause(request.id)
    assert fleet.pins.load() == pins.PinLoad({}, frozenset({pin.id}))
    other = fleet.pin('b', hosts=5)
    fleet.parts.now[0] += 61
    fleet.parts.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)

    assert fleet.fill(keeper) == [4, 1]

    assert len(fleet.hosts(other)) == 5
    assert len(fleet.asked(pin)) == 1


def test_ended_pin_requests_nothing_more(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.pins.end(pin.id, 'enough')

    assert sum(fleet.fill(keeper)) == 2 * SLOTS

    [request] = fleet.asked(pin)
    assert request.status == 'completed'
    assert keeper.seconds_to_wait(5) == 60


def test_pin_over_meanwhile_requests_nothing(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.parts.world.change(models.Pin, sa.true(), until=LONG_AGO)
    fleet.fill(keeper)
    assert len(fleet.asked(pin)) == 1

    fleet.parts.now[0] += 61
    fleet.parts.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)
    keeper.run()
    assert fleet.pins.get(pin.id).reason == 'its end time has passed'


def test_image_gone_meanwhile_not_requested(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.image_time()
    fleet.parts.images.delete(pin.images[0])

    keeper.run(fleet.ended.take())

    assert len(fleet.asked(pin)) == 1


def test_quota_counts_no_pin_requests(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    store = requests.Requests(
        fleet.parts.world.database,
        requests.RequestLimits(3, 5000, max_active_requests_per_project=1),
    )
    compute = fleet.parts.compute
    for host in range(20):
        compute.script(f'a{host}', pin.images[0], compute.answers(BROKEN))
    fleet.fill(fleet.keeper(request_store=store))
    assert len(fleet.asked(pin)) > 2

    mine = requests.NewRequest(hosts=('a1',), images=pin.images, project_id='p1')
    assert store.accept(mine).status == 'accepted'
    with pytest.raises(exception.TooMany):
        store.accept(mine)


# Conductors


def test_other_conductor_fills_what_it_ended(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    fleet.keeper('killed').run()
    later = fleet.keeper('c2')
    later._next_round = fleet.parts.now[0] + 60  # it runs for a while, and has checked nothing

    fleet.image_time()
    assert set(fleet.ended.take()) == {pin.id}
    later.run([pin.id])
    assert len(fleet.hosts(pin)) == 3 * SLOTS

    assert sum(fleet.fill(later)) == 16
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20


def test_restarted_conductor_continues_at_once(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    fleet.keeper('killed').run()
    fleet.image_time()
    fleet.image_time()

    assert sum(fleet.fill(fleet.keeper('restarted'))) == 12
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20


def test_kill_after_accept_repeats_nothing(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)

    class Killed(BaseException):
        pass

    class Accepting(requests.Requests):
        def accept(self, new: requests.NewRequest) -> model.CacheRequest:
            super().accept(new)
            raise Killed

    store = Accepting(fleet.parts.world.database, requests.RequestLimits(3, 5000, 100))
    with pytest.raises(Killed):
        fleet.keeper('killed', store).run()
    keeper = fleet.keeper('restarted')
    keeper.run()
    assert len(fleet.hosts(pin)) == 2 * SLOTS

    assert fleet.fill(keeper) == [4] * 5
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20


@pytest.mark.parametrize('is_same', [True, False])
def test_late_accept_makes_no_duplicate(fleet: Fleet, is_same: bool) -> None:
    pin = fleet.pin('a', hosts=20)
    store = fleet.parts.world.requests
    other = fleet.keeper('c2')
    other.rules = RULES if is_same else dataclasses.replace(RULES, slots=2)

    class Late(requests.Requests):
        def accept(self, new: requests.NewRequest) -> model.CacheRequest:
            if not fleet.asked(pin):
                other.run()
            return store.accept(new)

    late = fleet.keeper('late', Late(fleet.parts.world.database, requests.RequestLimits(3, 9, 9)))
    late.run()

    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == other.rules.slots * 2
    assert sum(fleet.fill(late)) == 20
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20


def test_work_requested_meanwhile_counts(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    late, other = fleet.keeper('late'), fleet.keeper('c2')
    show = fleet.parts.images.show
    calls: list[str] = []

    def interrupted(image_id: str) -> model.Image:
        calls.append(image_id)
        if len(calls) == 2:  # the check is over, and the top-up has begun
            other.run()
        return show(image_id)

    fleet.parts.images.show = interrupted  # type: ignore[method-assign]
    late.run()

    assert len(fleet.hosts(pin)) == 2 * SLOTS


def test_concurrent_top_ups_request_once(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=40)
    keepers = [fleet.keeper(f'c{n}') for n in range(3)]
    for keeper in keepers:
        keeper.run()
    fleet.image_time()

    while len(fleet.hosts(pin)) < 40:
        ended = fleet.ended.take()
        _all_at_once([functools.partial(keeper.run, ended) for keeper in keepers])
        fleet.image_time()
        assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin))

    assert fleet.most_outstanding <= 2 * SLOTS


def test_stale_backlog_requests_nothing_twice(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=30)
    stale, keeper = fleet.keeper('c1'), fleet.keeper('c2')
    stale.run()
    keeper.run()
    fleet.fill(keeper)
    requested = len(fleet.asked(pin))

    stale.run([pin.id])

    assert len(fleet.asked(pin)) == requested
    assert stale.seconds_to_wait(5) == 60  # its backlog is empty


# Failures


def test_image_service_outage_shows_reason(fleet: Fleet) -> None:
    pin = fleet.pin('a', hosts=20)
    keeper = fleet.keeper()
    keeper.run()
    fleet.image_time()
    show = fleet.parts.images.show

    def away(image_id: str) -> model.Image:
        raise exception.ImageServiceUnavailable('no answer')

    fleet.parts.images.show = away  # type: ignore[method-assign]
    keeper.run(fleet.ended.take())
    assert 'no answer' in str(fleet.pins.get(pin.id).reason)
    assert len(fleet.asked(pin)) == 1

    fleet.parts.images.show = show  # type: ignore[method-assign]
    fleet.parts.now[0] += 61
    fleet.parts.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)
    fleet.fill(keeper)
    assert len(set(fleet.hosts(pin))) == len(fleet.hosts(pin)) == 20
    assert fleet.pins.get(pin.id).reason is None


# Costs


@dataclasses.dataclass
class Work:
    """Statements, and steps of SQLite's virtual machine in tens."""

    statements: int = 0
    steps: int = 0


def test_top_up_cost_independent_of_fleet(fleet: Fleet) -> None:
    costs = [_cost_of_top_up(fleet, name, hosts) for name, hosts in (('a', 20), ('b', 100))]

    assert costs[0].statements == costs[1].statements <= 40
    assert costs[1].steps < 1.5 * costs[0].steps


def test_unheard_hosts_cost_no_statements(fleet: Fleet) -> None:
    cell, world = fleet.cell(), fleet.parts.world
    fleet.silence(cell)
    costs = []
    for name, unheard in (('a', 10), ('b', 60)):
        pin = fleet.pin(name, unheard + 16, cells=[*[cell] * unheard, *[world.cell] * 16])
        keeper = fleet.keeper()
        keeper.run()
        fleet.image_time()
        with _counted(world.database) as work:
            keeper.run(fleet.ended.take())
        assert len(fleet.hosts(pin)) == 3 * SLOTS
        fleet.pins.end(pin.id, 'enough')
        fleet.fill(keeper)
        costs.append(work.statements)

    assert costs[0] == costs[1] <= 45


def _cost_of_top_up(fleet: Fleet, name: str, hosts: int) -> Work:
    """Return the cost of a top-up of a pin that has filled as many hosts as it still needs."""
    pin = fleet.pin(name, hosts)
    keeper = fleet.keeper()
    keeper.run()
    fleet.image_time()
    _add_history(fleet, pin, hosts)
    with _counted(fleet.parts.world.database) as work:
        keeper.run(fleet.ended.take())
    assert len(fleet.hosts(pin)) == 3 * SLOTS
    fleet.pins.end(pin.id, 'enough')
    fleet.fill(keeper)
    return work


def _add_history(fleet: Fleet, pin: model.Pin, hosts: int) -> None:
    """Add ended requests of a pin, for four hosts each that are in no aggregate."""
    world = fleet.parts.world
    for start in range(0, hosts, SLOTS):
        names = tuple(f'earlier{n}' for n in range(start, start + SLOTS))
        request = world.accept(names, pin.images, pin_id=pin.id)
        is_it = models.CacheRequest.id == request.id
        now = request.created_at
        world.change(models.CacheRequest, is_it, status='completed', planned_at=now)
        tasks = [
            models.Task(
                request_id=request.id, host=host, image_id=image, status='cached',
                created_at=now, finished_at=now,
            )
            for host in names
            for image in pin.images
        ]  # fmt: skip
        world.database.write(lambda session, tasks=tasks: session.add_all(tasks))  # type: ignore[misc]


@contextlib.contextmanager
def _counted(database: session.Database) -> Iterator[Work]:
    work = Work()

    is_over = threading.Event()

    def step() -> None:
        work.steps += not is_over.is_set()

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        work.statements += not statement.startswith(('BEGIN', 'ROLLBACK'))
        cursor.connection.set_progress_handler(step, 10)

    sa.event.listen(database.engine, 'before_cursor_execute', note)
    try:
        yield work
    finally:
        is_over.set()
        sa.event.remove(database.engine, 'before_cursor_execute', note)


def _all_at_once(works: Sequence[Callable[[], object]]) -> None:
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# The loop


@pytest.fixture
def start(fleet: Fleet) -> Iterator[Callable[[], pin_loop.PinLoop]]:
    """Return a function that starts the loop of a conductor, until the test ends."""
    loop = pin_loop.PinLoop(fleet.keeper(), fleet.ended, poll_seconds=1000)

    def begin() -> pin_loop.PinLoop:
        loop.start()
        return loop

    yield begin
    loop.stop()


def test_end_of_work_wakes_loop(fleet: Fleet, start: Callable[[], pin_loop.PinLoop]) -> None:
    pin = fleet.pin('a', hosts=10)
    start()
    fleet.parts.world.wait(lambda: len(fleet.hosts(pin)) == 2 * SLOTS)

    fleet.image_time()

    fleet.parts.world.wait(lambda: len(fleet.hosts(pin)) == 10)


def test_failing_run_does_not_stop_loop(
    fleet: Fleet, start: Callable[[], pin_loop.PinLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = fleet.pin('a', hosts=10)
    due, failed = fleet.pins.due, threading.Event()

    def fails(seconds: float) -> Sequence[str]:
        if failed.is_set():
            return due(seconds)
        failed.set()
        raise exception.DatabaseUnavailable('away')

    monkeypatch.setattr(fleet.pins, 'due', fails)
    loop = start()
    assert failed.wait(TIMEOUT_SECONDS)
    fleet.parts.now[0] += 61
    loop.wake()

    fleet.parts.world.wait(lambda: len(fleet.hosts(pin)) == 2 * SLOTS)
