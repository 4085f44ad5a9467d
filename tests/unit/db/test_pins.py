# SPDX-License-Identifier: Apache-2.0
"""Pins are found again, end once, and have one keeper at a time."""

import dataclasses
import datetime
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from nova_precache import exception, model
from nova_precache.db import pages, pins
from nova_precache.db.engine import models
from nova_precache.db.request import queries
from tests.unit.conftest import LONG_AGO, World

AGGREGATE = model.Aggregate(7, 'uuid-7', 'edge')
HOUR = datetime.timedelta(hours=1)

pytestmark = pytest.mark.usefixtures('handmade_rows')


@pytest.fixture
def store(world: World) -> pins.Pins:
    return pins.Pins(world.database)


def _newest(**fields: Any) -> pages.Page:
    return dataclasses.replace(pins.NEWEST, **fields)


def _create(store: pins.Pins, images: Sequence[str] = ('i1',), **fields: Any) -> model.Pin:
    return store.create(pins.NewPin(**{'aggregate': AGGREGATE, 'images': tuple(images), **fields}))


def _add_request(world: World, pin: model.Pin, number: int, status: str) -> str:
    """Add a request of the pin, with the fields that a pin reads."""
    request_id = str(uuid.uuid4())
    row = models.CacheRequest(
        id=request_id, number=number, status=status, aggregate_id=7, aggregate_uuid='uuid-7',
        aggregate_name='edge', images=['i1'], options={}, pin_id=pin.id, created_at=LONG_AGO,
    )  # fmt: skip
    world.database.write(lambda session: session.add(row))
    return request_id


def _add_task(
    world: World,
    request_id: str,
    status: str,
    finished_at: datetime.datetime | None,
    reason: str | None = None,
) -> None:
    row = models.Task(
        request_id=request_id, host='h1', image_id='i1', status=status, created_at=LONG_AGO,
        finished_at=finished_at, reason=reason,
    )  # fmt: skip
    world.database.write(lambda session: session.add(row))


def _now(world: World) -> datetime.datetime:
    """The database's clock, to the second."""
    pin = pins.Pins(world.database).create(pins.NewPin(AGGREGATE, ()))
    assert pin.created_at is not None
    return pin.created_at.replace(microsecond=0)


def test_pin_is_stored_completely(store: pins.Pins) -> None:
    until = datetime.datetime(2040, 1, 2, 3, tzinfo=datetime.timezone(HOUR))

    made = _create(
        store, ['i1', 'i2'], until=until, description='golden', project_id='p1', user_id='u1',
        is_admin=True, request_id='req-1',
    )  # fmt: skip

    assert store.get(made.id) == store.get(made.id, 'p1') == made
    assert (made.status, made.images, made.images_gone) == ('active', ('i1', 'i2'), {})
    assert (made.aggregate_id, made.aggregate_uuid, made.aggregate_name) == (7, 'uuid-7', 'edge')
    assert made.until == datetime.datetime(2040, 1, 2, 2)  # noqa: DTZ001 - as the database keeps it
    assert (made.project_id, made.user_id, made.is_admin) == ('p1', 'u1', True)
    assert (made.description, made.request_id, made.reason) == ('golden', 'req-1', None)
    assert made.created_at is not None


def test_pin_of_other_project_not_found(store: pins.Pins) -> None:
    made = _create(store, project_id='p1')

    for attempt in (lambda: store.get(made.id, 'p2'), lambda: store.end(made.id, 'no', 'p2')):
        with pytest.raises(exception.PinNotFound):
            attempt()

    assert store.get(made.id).status == 'active'


def test_pins_paged_newest_first(store: pins.Pins) -> None:
    first, second, third = (_create(store).id for _ in range(3))

    assert [pin.id for pin in store.list(page=_newest(limit=2))] == [third, second]
    assert [pin.id for pin in store.list(page=_newest(limit=2, marker=second))] == [first]
    with pytest.raises(exception.InvalidMarker):
        store.list(page=_newest(marker='unknown'))


def test_pins_filtered_by_project_status_aggregate(store: pins.Pins) -> None:
    mine = _create(store, project_id='p1').id
    other = _create(store, project_id='p2', aggregate=model.Aggregate(8, 'uuid-8', 'core')).id
    store.end(other, 'enough')

    assert [pin.id for pin in store.list(project_id='p1')] == [mine]
    assert [pin.id for pin in store.list(status='ended')] == [other]
    assert [pin.id for pin in store.list(aggregate=queries.AggregateFilter(id=8))] == [other]
    assert store.list(project_id='p1', aggregate=queries.AggregateFilter(id=8)) == []


def test_pin_ends_once_with_reason(store: pins.Pins) -> None:
    made = _create(store)

    ended = store.end(made.id, 'enough')

    assert ended == store.get(made.id)
    assert (ended.status, ended.reason) == ('ended', 'enough')
    assert ended.ended_at is not None
    with pytest.raises(exception.StatusConflict, match='is ended'):
        store.end(made.id, 'again')
    assert store.get(made.id) == ended


def test_only_active_pins_keep_images(
    store: pins.Pins,
) -> None:
    _create(store, ['i1', 'i2'])
    store.end(_create(store, ['i3']).id, 'enough')
    part = _create(store, ['i2', 'i4', 'i5'])
    assert store.take(part.id, 'c1', 0)
    assert store.checked(part.id, 'c1', None, {'i5': 'deleted'})

    assert store.pinned_images([7, 8]) == {7: {'i1', 'i2', 'i4'}}


# Keepers


def test_one_of_two_conductors_gets_pin(store: pins.Pins) -> None:
    made = _create(store)

    taken = store.take(made.id, 'c1', 0)

    assert taken is not None
    assert taken.pin == made
    assert taken.now >= made.created_at  # type: ignore[operator]
    assert store.take(made.id, 'c2', 0) is None
    assert store.due(0) == []


def test_pin_is_due_after_interval(world: World, store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'c1', 60)
    assert store.checked(made.id, 'c1', 'a host is down', {'i1': 'deleted'})

    assert store.due(60) == []
    assert store.take(made.id, 'c2', 60) is None
    assert store.due(0) == [made.id]
    kept = store.get(made.id)
    assert (kept.reason, kept.images_gone) == ('a host is down', {'i1': 'deleted'})
    world.change(models.Pin, models.Pin.id == made.id, checked_at=LONG_AGO)
    assert store.due(60) == [made.id]
    assert store.take(made.id, 'c2', 60)


def test_longest_unchecked_pin_comes_first(world: World, store: pins.Pins) -> None:
    ids = [_create(store).id for _ in range(3)]
    world.change(models.Pin, models.Pin.id == ids[0], checked_at=LONG_AGO + HOUR)
    world.change(models.Pin, models.Pin.id == ids[1], checked_at=LONG_AGO)

    assert store.due(60) == [ids[2], ids[1], ids[0]]


def test_pin_of_dead_conductor_taken_over(world: World, store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'dead', 0)
    world.change(models.Pin, models.Pin.id == made.id, keeper_lease_until=LONG_AGO)

    assert store.due(0) == [made.id]
    assert store.take(made.id, 'c2', 0)

    assert not store.hold(made.id, 'dead')
    assert not store.checked(made.id, 'dead', 'late', {})
    assert not store.close(made.id, 'dead', 'late', {})
    assert store.get(made.id) == made


def test_renewed_lease_not_taken_over(world: World, store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'c1', 0)
    world.change(models.Pin, models.Pin.id == made.id, keeper_lease_until=LONG_AGO)

    assert store.hold(made.id, 'c1')

    assert store.take(made.id, 'c2', 0) is None


def test_ended_pin_lost_to_keeper(store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'c1', 0)
    ended = store.end(made.id, 'enough')

    assert not store.hold(made.id, 'c1')
    assert not store.checked(made.id, 'c1', None, {})
    assert not store.close(made.id, 'c1', 'gone', {})

    assert store.get(made.id) == ended
    assert store.due(0) == []


def test_keeper_ends_pin_of_missing_resource(store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'c1', 0)

    assert store.close(made.id, 'c1', 'no image is available', {'i1': 'deleted'})

    ended = store.get(made.id)
    assert (ended.status, ended.reason) == ('ended', 'no image is available')
    assert ended.images_gone == {'i1': 'deleted'}
    assert ended.ended_at == ended.checked_at is not None


def test_pin_keeps_its_request(world: World, store: pins.Pins) -> None:
    made, other = _create(store), _create(store)
    assert store.asked(made.id) == pins.PinRequests(0, {})
    _add_request(world, made, 3, 'completed')
    running = _add_request(world, made, 5, 'running')
    _add_request(world, other, 9, 'running')

    assert store.asked(made.id) == pins.PinRequests(5, {running: 'running'})


def test_pin_is_read_while_active(store: pins.Pins) -> None:
    made = _create(store)
    assert store.take(made.id, 'c1', 0)

    read = store.read(made.id)

    assert read is not None
    assert (read.pin, read.now >= made.created_at) == (made, True)  # type: ignore[operator]
    store.note(made.id, 'no answer')
    assert store.get(made.id).reason == 'no answer'
    store.end(made.id, 'enough')
    store.note(made.id, 'late')
    assert store.read(made.id) is None
    assert store.get(made.id).reason == 'enough'


def test_load_counts_hosts_that_need_slots(world: World, store: pins.Pins) -> None:
    made, other = _create(store, ['i1', 'i2']), _create(store)
    soon = _now(world) + HOUR
    planned = _planned(world, made, 1)
    for host, image_id, status, next_at in (
        ('h1', 'i1', 'downloading', None),
        ('h1', 'i2', 'queued', None),
        ('h2', 'i1', 'retry_wait', soon),
        ('h3', 'i1', 'retry_wait', LONG_AGO),
        ('h3', 'i2', 'cached', None),
        ('h4', 'i1', 'error', None),
    ):
        _add_host_task(world, planned, host, status, next_at, image_id)
    _accepted(world, made, 2, ['h5', 'h6'])
    paused = _planned(world, other, 3, 'paused')
    _add_host_task(world, paused, 'h1', 'queued', open=False)
    done = _planned(world, _create(store), 4, 'completed')
    _add_host_task(world, done, 'h1', 'cached')
    _planned(world, None, 5)
    early = _create(store)
    _accepted(world, early, 6, ['h7'], 'paused')

    assert store.load() == pins.PinLoad({made.id: 4}, frozenset({other.id, early.id}))


def test_load_leaves_out_unheard_cells(world: World, store: pins.Pins) -> None:
    made = _create(store)
    other = world.inventory.create_cell('cell2', 'fake:///cell2')
    world.planned(['h1', 'h2'], ['i1'], pin_id=made.id)
    world.planned(['h3'], ['i1'], other.uuid, pin_id=made.id)
    assert store.load() == pins.PinLoad({made.id: 3}, frozenset())  # as cells without a record
    world.hears(world.cell.uuid, other.uuid)
    assert store.load() == pins.PinLoad({made.id: 3}, frozenset())

    is_it = models.Hearing.cell_uuid == world.cell.uuid
    world.change(models.Hearing, is_it, until=LONG_AGO)
    assert store.unheard_cells() == {world.cell.uuid}
    assert store.load() == pins.PinLoad({made.id: 1}, frozenset(), frozenset({world.cell.uuid}))

    world.hears(world.cell.uuid)
    assert store.load() == pins.PinLoad({made.id: 3}, frozenset())


def test_files_in_flight_of_one_pin(world: World, store: pins.Pins) -> None:
    made, other = _create(store), _create(store)
    planned = _planned(world, made, 1)
    for host, status in (('h1', 'queued'), ('h2', 'retry_wait'), ('h3', 'cached')):
        _add_host_task(world, planned, host, status)
    _accepted(world, made, 2, ['h4'])
    _add_host_task(world, _planned(world, other, 3), 'h5', 'queued')

    assert store.in_flight(made.id) == {('h1', 'i1'), ('h2', 'i1'), ('h4', 'i1')}
    assert store.in_flight(made.id, ['h1', 'h3', 'h5', 'h4']) == {('h1', 'i1'), ('h4', 'i1')}


def test_attempts_of_named_hosts_only(world: World, store: pins.Pins) -> None:
    made, now = _create(store), _now(world)
    planned = _planned(world, made, 1, 'completed')
    for host in ('h1', 'h2'):
        _add_host_task(world, planned, host, 'cached', finished_at=now)

    assert store.tried(made.id, 600).keys() == {('h1', 'i1'), ('h2', 'i1')}
    assert store.tried(made.id, 600, ['h2', 'h3']).keys() == {('h2', 'i1')}


def test_newest_number_found_from_earlier_one(world: World, store: pins.Pins) -> None:
    made = _create(store)
    for number in (3, 5):
        _add_request(world, made, number, 'completed')

    assert [store.asked(made.id, since).last_number for since in (0, 3, 5)] == [5, 5, 5]


def _planned(world: World, pin: model.Pin | None, number: int, status: str = 'running') -> str:
    """Add a planned request, of a pin unless it is None."""
    request_id = _add_request(world, pin or pins.Pins(world.database).list()[0], number, status)
    world.change(
        models.CacheRequest,
        models.CacheRequest.id == request_id,
        planned_at=LONG_AGO,
        pin_id=None if pin is None else pin.id,
    )
    return request_id


def _accepted(
    world: World, pin: model.Pin, number: int, hosts: Sequence[str], status: str = 'accepted'
) -> None:
    request_id = _add_request(world, pin, number, status)
    is_it = models.CacheRequest.id == request_id
    world.change(models.CacheRequest, is_it, hosts=list(hosts))


def _add_host_task(
    world: World,
    request_id: str,
    host: str,
    status: str,
    next_attempt_at: datetime.datetime | None = None,
    image_id: str = 'i1',
    **fields: Any,
) -> None:
    row = models.Task(
        request_id=request_id, host=host, image_id=image_id, status=status, created_at=LONG_AGO,
        next_attempt_at=next_attempt_at, **fields,
    )  # fmt: skip
    world.database.write(lambda session: session.add(row))


def test_outcomes_of_pin_tasks_counted(world: World, store: pins.Pins) -> None:
    made, now = _create(store), _now(world)
    ended = [
        ('cached', now - 30 * HOUR),
        ('error', now - 26 * HOUR),
        ('existing', now - 9 * HOUR),
        ('error', now - 8 * HOUR),
        ('cached', now - HOUR / 2),
        ('skipped', now - HOUR / 4),
        ('downloading', None),
    ]
    for number, (status, finished_at) in enumerate(ended, start=1):
        _add_task(world, _add_request(world, made, number, 'partial'), status, finished_at)

    _add_task(world, _add_request(world, _create(store), 99, 'failed'), 'error', now)

    [(file, tried)] = store.tried(made.id, 48 * 3600).items()

    assert file == ('h1', 'i1')
    assert tried == pins.AttemptHistory(
        ended_at=now - HOUR / 4, succeeded_at=now - HOUR / 2, failures=2, successes=1
    )
    assert tried.has_failed
    assert store.tried(made.id, 600) == {}


def test_last_success_is_no_failure(world: World, store: pins.Pins) -> None:
    made, now = _create(store), _now(world)
    for number, (status, hours) in enumerate([('error', 3), ('existing', 2)], start=1):
        _add_task(world, _add_request(world, made, number, 'failed'), status, now - hours * HOUR)

    [tried] = store.tried(made.id, 24 * 3600).values()

    assert not tried.has_failed
    assert (tried.failures, tried.successes) == (1, 0)


def test_foreign_file_failure_counts_until_restart(world: World, store: pins.Pins) -> None:
    made, now = _create(store), _now(world)
    reason = str(exception.NotOurs('kept', 'owned by libvirt-qemu'))
    world.living('h1')

    def starts(at: datetime.datetime) -> None:
        world.change(models.Agent, models.Agent.host == 'h1', started_at=at)

    def tried(request_status: str, finished_at: datetime.datetime, why: str) -> pins.AttemptHistory:
        number = len(store.asked(made.id).unfinished) + store.asked(made.id).last_number + 1
        request_id = _add_request(world, made, number, request_status)
        _add_task(world, request_id, 'error', finished_at, why)
        [found] = store.tried(made.id, 600).values()
        return found

    starts(now - 80 * HOUR)
    long_ago = tried('failed', now - 70 * HOUR, reason)
    assert (long_ago.is_not_ours, long_ago.has_failed, long_ago.failures) == (True, True, 0)
    assert not tried('failed', now, 'No space left on device').is_not_ours
    assert tried('failed', now + HOUR, reason).is_not_ours

    starts(now + 2 * HOUR)
    [found] = store.tried(made.id, 600).values()
    assert not found.is_not_ours
