# SPDX-License-Identifier: Apache-2.0
"""The requests of a pin in its rounds, what it leaves alone, and when it ends."""

import dataclasses
import datetime
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cache import layout
from nova_precache.cells import models as cell_models
from nova_precache.conductor import pins as keeping
from nova_precache.db import caches, pins, requests
from nova_precache.db.engine import models
from nova_precache.image import fake
from tests.unit.conductor.conftest import Lines
from tests.unit.conftest import LIMITS, LONG_AGO, World

RULES = keeping.PinRules(interval_seconds=0, slots=10, minimum_age_seconds=24 * 3600)
NOW = datetime.datetime(2030, 1, 1)  # noqa: DTZ001 - as the database keeps it
HOUR = datetime.timedelta(hours=1)
MINUTE = datetime.timedelta(minutes=1)


@dataclasses.dataclass
class Site:
    """Conductors that keep pins, and their surroundings."""

    world: World
    pins: pins.Pins
    caches: caches.Caches
    images: fake.FakeImageService
    wakes: list[None]
    rules: keeping.PinRules = RULES

    def reconciler(
        self, conductor: str = 'c1', request_store: requests.Requests | None = None
    ) -> keeping.Reconciler:
        return keeping.Reconciler(
            conductor_id=conductor,
            request_store=request_store or self.world.requests,
            pin_store=self.pins,
            cache_store=self.caches,
            aggregates=self.world.inventory,
            alive=self.world.agents,
            images=self.images,
            rules=self.rules,
            wake=lambda: self.wakes.append(None),
        )

    def round(self) -> None:
        """Check every pin once."""
        self.reconciler().run()

    def pin(self, hosts: Sequence[str], images: int = 1, **fields: Any) -> model.Pin:
        """Pin new images to a new aggregate of living hosts."""
        made = tuple(self.images.add(b'some data').id for _ in range(images))
        aggregate = self.world.aggregate(hosts)
        new = {'aggregate': aggregate, 'images': made, 'project_id': 'p1', **fields}
        return self.pins.create(pins.NewPin(**new))

    def now(self, pin: model.Pin) -> model.Pin:
        return self.pins.get(pin.id)

    def asked(self, pin: model.Pin) -> list[model.CacheRequest]:
        """Return the requests of a pin, oldest first."""
        row = models.CacheRequest
        query = sa.select(row.id).where(row.pin_id == pin.id).order_by(row.number)
        with self.world.database.reader() as reader:
            ids = reader.scalars(query).all()
        return [self.world.requests.get(request_id) for request_id in ids]

    def files(self, pin: model.Pin) -> list[set[tuple[str, str]]]:
        """Return the files that each request of a pin asked for, oldest request first."""
        return [
            {(host, image) for host in request.hosts or () for image in request.images}
            for request in self.asked(pin)
        ]

    def finish(
        self,
        pin: model.Pin,
        outcome: str,
        ended_at: datetime.datetime | None = None,
        reason: str | None = None,
    ) -> None:
        """End the requests of a pin, all tasks with one outcome."""
        unfinished = [each for each in self.asked(pin) if each.status in model.REQUEST_ACTIVE]
        for request in unfinished:
            rows = [
                models.Task(
                    request_id=request.id,
                    host=host,
                    image_id=image,
                    status=outcome,
                    reason=reason,
                    created_at=LONG_AGO,
                    finished_at=ended_at or LONG_AGO,
                )
                for host in request.hosts or ()
                for image in request.images
            ]
            self.world.database.write(lambda session, rows=rows: session.add_all(rows))  # type: ignore[misc]
            is_it = models.CacheRequest.id == request.id
            self.world.change(models.CacheRequest, is_it, status='partial', finished_at=LONG_AGO)

    def report(self, host: str, images: Sequence[str], touched_at: datetime.datetime) -> None:
        """Report the full inventory of a host."""
        files = [
            model.CachedImage(host, layout.base_name(image), image, 9, 9, touched_at)
            for image in images
        ]
        self.caches.record([caches.Report(host, files, [], full=True)])


@pytest.fixture
def site(world: World) -> Site:
    return Site(
        world=world,
        pins=pins.Pins(world.database),
        caches=caches.Caches(world.database),
        images=fake.FakeImageService(),
        wakes=[],
    )


def _just_now(site: Site) -> datetime.datetime:
    """Return the database's time."""
    site.world.living('clock')
    seen_at = site.world.agents.get(['clock'])['clock'].seen_at
    assert seen_at is not None
    return seen_at


# Requests


def test_pin_requests_missing_images_last(site: Site) -> None:
    pin = site.pin(['h1', 'h2'], images=2, user_id='u1', is_admin=True, request_id='req-1')

    site.round()

    [request] = site.asked(pin)
    assert (request.hosts, request.images) == (('h1', 'h2'), pin.images)
    assert (request.aggregate_id, request.aggregate_uuid) == (pin.aggregate_id, pin.aggregate_uuid)
    assert (request.pin_id, request.description) == (pin.id, f'pin {pin.id}')
    assert (request.project_id, request.user_id, request.request_id) == ('p1', 'u1', 'req-1')
    assert request.priority < 0
    assert len(site.wakes) == 1
    looked_after = site.now(pin)
    assert (looked_after.status, looked_after.reason) == ('active', None)
    assert looked_after.checked_at is not None


def test_cached_images_not_requested(site: Site) -> None:
    pin = site.pin(['h1', 'h2'], images=2)
    site.report('h1', pin.images, _just_now(site))
    site.report('h2', pin.images[:1], _just_now(site))

    site.round()

    assert site.files(pin) == [{('h2', pin.images[1])}]


def test_nothing_missing_requests_nothing(site: Site) -> None:
    pin = site.pin(['h1'])
    site.report('h1', pin.images, _just_now(site))

    site.round()

    assert site.asked(pin) == []
    assert site.wakes == []


def test_all_hosts_checked_in_portions(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, 'HOSTS_AT_ONCE', 2)
    pin = site.pin(['h1', 'h2', 'h3', 'h4', 'h5'])
    for host in ('h1', 'h4'):
        site.report(host, pin.images, _just_now(site) - 13 * HOUR * (host == 'h4'))

    site.round()

    assert [request.hosts for request in site.asked(pin)] == [('h2', 'h3', 'h4', 'h5')]


def test_hosts_get_only_their_missing_images(
    site: Site,
) -> None:
    pin = site.pin(['h1', 'h2', 'h3'], images=2)
    site.report('h1', pin.images[:1], _just_now(site))
    site.report('h3', pin.images[:1], _just_now(site))

    site.round()

    first, second = pin.images
    assert site.files(pin) == [
        {('h1', second), ('h3', second)},
        {('h2', first), ('h2', second)},
    ]


def test_joined_host_requested_beside_unfinished(site: Site) -> None:
    pin = site.pin(['h1'])
    site.round()
    site.world.inventory.add_host(pin.aggregate_id, _living(site, 'h2'))

    for _ in range(2):
        site.round()

    assert site.files(pin) == [{('h1', pin.images[0])}, {('h2', pin.images[0])}]


def test_paused_request_shows_as_fault(site: Site) -> None:
    pin = site.pin(['h1'])
    site.round()
    [request] = site.asked(pin)
    site.world.change(models.CacheRequest, models.CacheRequest.id == request.id, status='paused')

    site.round()

    assert site.now(pin).reason == f'request {request.id} is paused'


def test_outstanding_hosts_bounded(site: Site) -> None:
    site.rules = dataclasses.replace(RULES, slots=1)
    pin = site.pin(['h1', 'h2', 'h3', 'h4', 'h5'])

    for _ in range(3):
        site.round()
        site.finish(pin, 'cached')
        for request in site.asked(pin):
            for host in request.hosts or ():
                site.report(host, pin.images, _just_now(site))
    site.round()

    assert [request.hosts for request in site.asked(pin)] == [('h1', 'h2'), ('h3', 'h4'), ('h5',)]


def test_failing_hosts_do_not_delay_others(site: Site) -> None:
    site.rules = dataclasses.replace(RULES, slots=1)
    pin = site.pin(['h1', 'h2', 'h3', 'h4'])
    began = _just_now(site) - HOUR

    for minutes in range(3):
        site.round()
        site.finish(pin, 'error', began + minutes * MINUTE)

    assert [request.hosts for request in site.asked(pin)] == [
        ('h1', 'h2'),
        ('h3', 'h4'),
        ('h1', 'h2'),
    ]


def test_settling_host_delays_no_other(site: Site) -> None:
    pin = site.pin(['h1', 'h2'])
    site.world.dead('h1')
    site.world.hears(for_seconds=1)  # for too short a time to say that the host is down

    site.round()

    assert site.files(pin) == [{('h2', pin.images[0])}]
    assert site.now(pin).reason == ('hosts not reached: 1, such as h1: it has not reported yet')


def test_unreachable_hosts_left_for_later(site: Site) -> None:
    pin = site.pin(['up', 'down', 'unmapped'])
    site.world.dead('down')
    unmapped = cell_models.HostMapping.host == 'unmapped'
    site.world.database.write(
        lambda session: session.execute(sa.delete(cell_models.HostMapping).where(unmapped))
    )

    site.round()

    assert site.files(pin) == [{('up', pin.images[0])}]
    assert str(site.now(pin).reason).startswith('hosts not reached: 2, such as down: host down')

    site.finish(pin, 'cached')
    site.report('up', pin.images, _just_now(site))
    for host in ('down', 'unmapped'):
        site.world.living(host)
    site.round()

    assert site.files(pin)[1:] == [{(host, pin.images[0]) for host in ('down', 'unmapped')}]
    assert site.now(pin).reason is None


def test_hosts_of_disabled_cell_left(site: Site) -> None:
    pin = site.pin(['h1'])
    is_it = cell_models.CellMapping.uuid == site.world.cell.uuid
    site.world.change(cell_models.CellMapping, is_it, disabled=True)

    site.round()

    assert site.asked(pin) == []
    assert site.now(pin).reason == 'hosts not reached: 1, such as h1: cell cell1 is disabled'


def test_file_touched_at_half_expiry_age(site: Site) -> None:
    pin = site.pin(['old', 'young'])
    site.report('old', pin.images, _just_now(site) - 13 * HOUR)
    site.report('young', pin.images, _just_now(site) - 11 * HOUR)

    site.round()

    assert site.files(pin) == [{('old', pin.images[0])}]


def test_request_quota_counts_only_requested_hosts(site: Site) -> None:
    site.rules = dataclasses.replace(RULES, slots=1)
    pin = site.pin(['h1', 'h2', 'h3'])

    site.reconciler(request_store=_limited(site, max_tasks_per_request=2)).run()

    assert [request.hosts for request in site.asked(pin)] == [('h1', 'h2')]


def test_failing_pin_shows_reason_and_retries(site: Site) -> None:
    pin = site.pin(['h1'], images=2)

    site.reconciler(request_store=_limited(site, max_images_per_request=1)).run()
    assert site.asked(pin) == []
    assert 'max_images_per_request' in str(site.now(pin).reason)

    site.round()
    assert len(site.asked(pin)) == 1
    assert site.now(pin).reason is None


# Conductors


def test_concurrent_conductors_make_one_request(site: Site) -> None:
    made = [site.pin([f'h{number}']) for number in range(4)]
    barrier = threading.Barrier(3)

    def look(conductor: str) -> None:
        barrier.wait()
        site.reconciler(conductor).run()

    threads = [threading.Thread(target=look, args=(f'c{number}',)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [len(site.asked(pin)) for pin in made] == [1, 1, 1, 1]


def test_lease_lost_during_request_repeats_nothing(
    site: Site,
) -> None:
    pin = site.pin(['h1'])
    late = _Interrupted(site.world.requests, lambda: _take_over(site, pin))

    site.reconciler('late', request_store=late).run()

    [request] = site.asked(pin)
    assert late.accepted == [request.id]
    assert site.now(pin).reason is None


def test_lease_lost_before_request_requests_nothing(site: Site) -> None:
    pin = site.pin(['h1'])
    show = site.images.show

    def slow(image_id: str) -> model.Image:
        site.pins.end(pin.id, 'enough')
        return show(image_id)

    site.images.show = slow  # type: ignore[method-assign]
    site.round()

    assert site.asked(pin) == []
    assert site.now(pin).reason == 'enough'


# Ends


def test_expired_pin_ends_without_request(site: Site) -> None:
    over = site.pin(['h1'], until=LONG_AGO)
    open_until_later = site.pin(['h2'], until=LONG_AGO + 10000 * 24 * HOUR * 10)

    site.round()

    assert (site.now(over).status, site.now(over).reason) == ('ended', 'its end time has passed')
    assert site.asked(over) == []
    assert site.now(open_until_later).status == 'active'
    assert len(site.asked(open_until_later)) == 1


def test_pin_ends_with_its_aggregate(site: Site) -> None:
    pin = site.pin([])
    site.world.inventory.delete_aggregate(pin.aggregate_id)

    site.round()

    assert (site.now(pin).status, site.now(pin).reason) == ('ended', 'the aggregate was deleted')


def test_pin_ignores_aggregate_of_reused_id(site: Site) -> None:
    pin = site.pin(['h1'])
    is_it = cell_models.Aggregate.id == pin.aggregate_id
    site.world.change(cell_models.Aggregate, is_it, uuid='another')

    site.round()

    assert site.now(pin).status == 'ended'
    assert site.asked(pin) == []


def test_missing_image_dropped_from_pin(site: Site) -> None:
    pin = site.pin(['h1'], images=2)
    site.images.delete(pin.images[0])

    site.round()

    looked_after = site.now(pin)
    assert looked_after.status == 'active'
    assert looked_after.images_gone == {pin.images[0]: f'Image {pin.images[0]} could not be found.'}
    assert site.files(pin) == [{('h1', pin.images[1])}]


def test_reactivated_image_kept_again(site: Site) -> None:
    pin = site.pin(['h1'], images=2)
    site.images.update(pin.images[0], status='deactivated')
    site.report('h1', pin.images[1:], _just_now(site))
    site.round()
    assert set(site.now(pin).images_gone) == {pin.images[0]}

    site.images.update(pin.images[0], status='active')
    site.round()

    assert site.now(pin).images_gone == {}
    assert site.files(pin) == [{('h1', pin.images[0])}]


def test_pin_without_images_ends_with_reason(site: Site) -> None:
    pin = site.pin(['h1'], images=2)
    site.images.delete(pin.images[0])
    site.images.update(pin.images[1], visibility='private', owner='p2')

    site.round()

    ended = site.now(pin)
    assert ended.status == 'ended'
    assert set(ended.images_gone) == set(pin.images)
    assert ended.reason == (
        f'no image is available: Image {pin.images[0]} could not be found.; Image '
        f'{pin.images[1]} is not visible to project p1'
    )
    assert site.asked(pin) == []


def test_admin_pin_keeps_private_image(site: Site) -> None:
    pin = site.pin(['h1'], is_admin=True)
    site.images.update(pin.images[0], visibility='private', owner='p2')

    site.round()

    assert len(site.asked(pin)) == 1


def test_image_service_outage_decides_nothing(site: Site) -> None:
    pin = site.pin(['h1'], images=2)
    site.images.delete(pin.images[0])
    site.round()
    gone = site.now(pin).images_gone
    site.finish(pin, 'cached')
    site.images.faults.unavailable = 1

    site.round()
    assert site.now(pin).status == 'active'
    assert site.now(pin).reason == 'The image service does not answer'
    assert site.now(pin).images_gone == gone
    assert len(site.asked(pin)) == 1

    site.round()
    assert site.now(pin).reason is None
    assert len(site.asked(pin)) == 2


def test_failing_pin_does_not_stop_round(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    bad, good = site.pin(['h1']), site.pin(['h2'])
    show = site.images.show

    def fails(image_id: str) -> model.Image:
        if image_id in bad.images:
            raise ZeroDivisionError
        return show(image_id)

    site.images.show = fails  # type: ignore[method-assign]
    site.round()

    assert site.now(bad).reason == 'unexpected ZeroDivisionError'
    assert f'Checking pin {bad.id} failed' in caplog.text
    assert len(site.asked(good)) == 1


# When a host or an image is tried again


@pytest.mark.parametrize(('failures', 'minutes'), [(1, 2), (2, 4), (5, 32), (6, 60), (5000, 60)])
def test_failed_image_retries_back_off(failures: int, minutes: int) -> None:
    tried = pins.AttemptHistory(NOW, None, failures, 0)

    assert _choose(NOW + (minutes - 1) * MINUTE, tried=tried) == ([], [('h1', 'i1')])
    assert _choose(NOW + minutes * MINUTE, tried=tried) == ([('h1', 'i1')], [])


@pytest.mark.parametrize(('successes', 'minutes'), [(0, 1), (1, 1), (2, 2), (4, 8), (9, 10)])
def test_vanished_image_repairs_back_off(successes: int, minutes: int) -> None:
    tried = pins.AttemptHistory(NOW, NOW, failures=3, successes=successes)

    assert _choose(NOW + (minutes - 0.5) * MINUTE, tried=tried) == ([], [])
    assert _choose(NOW + minutes * MINUTE, tried=tried) == ([('h1', 'i1')], [])


def test_touched_file_counts_as_young() -> None:
    tried = pins.AttemptHistory(NOW, NOW, failures=0, successes=1)

    old = NOW - 20 * HOUR
    assert _choose(NOW + 11 * HOUR, present=old, tried=tried) == ([], [])
    assert _choose(NOW + 13 * HOUR, present=old, tried=tried) == ([('h1', 'i1')], [])
    assert _choose(NOW + 13 * HOUR, present=NOW + 2 * HOUR, tried=tried) == ([], [])


def test_silent_host_counts_cached_until_touch() -> None:
    tried = pins.AttemptHistory(NOW, NOW, failures=0, successes=1)

    assert _choose(NOW + 11 * HOUR, tried=tried, has_told=False) == ([], [])
    assert _choose(NOW + 13 * HOUR, tried=tried, has_told=False) == ([('h1', 'i1')], [])


# Files of another user


NOT_OURS = str(exception.NotOurs('kept', 'owned by libvirt-qemu'))


@pytest.fixture
def not_ours(site: Site) -> model.Pin:
    """A pin whose old file could not be touched three days ago."""
    site.rules = dataclasses.replace(RULES, interval_seconds=60)
    pin = site.pin(['h1'])
    site.report('h1', pin.images, LONG_AGO)
    site.round()
    ended_at = _just_now(site) - 72 * HOUR
    site.finish(pin, 'error', ended_at, NOT_OURS)
    site.world.change(models.Agent, models.Agent.host == 'h1', started_at=ended_at - HOUR)
    return pin


def _next_round(site: Site) -> None:
    site.world.change(models.Pin, sa.true(), checked_at=LONG_AGO)
    site.round()


def test_foreign_file_not_requested_again(site: Site, not_ours: model.Pin) -> None:
    for _ in range(5):
        _next_round(site)

    assert len(site.asked(not_ours)) == 1
    assert site.now(not_ours).reason == (
        f'cached files that cannot be kept: 1, such as image {not_ours.images[0]} on h1 (see '
        'its task)'
    )


def test_foreign_file_requested_after_restart(site: Site, not_ours: model.Pin) -> None:
    site.world.living('h1')  # it registers
    _next_round(site)
    assert len(site.asked(not_ours)) == 2

    site.finish(not_ours, 'error', _just_now(site) + MINUTE, NOT_OURS)
    for _ in range(3):
        _next_round(site)
    assert len(site.asked(not_ours)) == 2


def test_removed_foreign_file_requested(site: Site, not_ours: model.Pin) -> None:
    site.report('h1', [], LONG_AGO)
    _next_round(site)
    assert len(site.asked(not_ours)) == 2


def test_touched_foreign_file_clears_fault(site: Site, not_ours: model.Pin) -> None:
    site.report('h1', not_ours.images, _just_now(site))
    _next_round(site)
    assert (len(site.asked(not_ours)), site.now(not_ours).reason) == (1, None)


def test_touched_foreign_file_touched_when_old(site: Site, not_ours: model.Pin) -> None:
    site.report('h1', not_ours.images, _just_now(site) - 13 * HOUR)
    _next_round(site)
    assert len(site.asked(not_ours)) == 2


@pytest.mark.parametrize('reason', [None, 'Touching it: Read-only file system', 'present'])
def test_other_failure_is_retried(site: Site, not_ours: model.Pin, reason: str | None) -> None:
    site.world.change(models.Task, sa.true(), reason=reason)
    _next_round(site)
    assert len(site.asked(not_ours)) == 2


def test_nothing_touched_without_expiry_age() -> None:
    rules = keeping.PinRules(60, 10, minimum_age_seconds=0)

    assert _choose(NOW, present=LONG_AGO, rules=rules) == ([], [])
    assert _choose(NOW, rules=rules) == ([('h1', 'i1')], [])


def test_failures_show_as_fault(site: Site) -> None:
    site.rules = dataclasses.replace(RULES, interval_seconds=60)
    pin = site.pin(['h1', 'h2'])
    site.round()
    site.finish(pin, 'error', _just_now(site))
    site.world.change(models.Pin, models.Pin.id == pin.id, checked_at=LONG_AGO)

    site.round()

    assert len(site.asked(pin)) == 1
    assert site.now(pin).reason == (
        f'files that failed and will be retried: 2, such as image {pin.images[0]} on h1'
    )


def _choose(
    now: datetime.datetime,
    present: datetime.datetime | None = None,
    tried: pins.AttemptHistory | None = None,
    has_told: bool = True,
    rules: keeping.PinRules = keeping.PinRules(60, 10, 24 * 3600),  # noqa: B008 - it is frozen
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return the files to ask for and the failing ones, for one image on one host."""
    file = ('h1', 'i1')
    known = keeping.FileFacts(
        now,
        {} if present is None else {file: model.CachedImage('h1', 'n', 'i1', 9, 9, present)},
        {} if tried is None else {file: tried},
        {'h1'} if has_told else set(),
    )
    seemingly = dataclasses.replace(known, tried={}, reported=())
    choice = keeping.choose(keeping.missing_or_old(['h1'], ['i1'], seemingly, rules), known, rules)
    files = [(host, image_id) for host, images in choice.wanted.items() for image_id in images]
    return files, list(choice.failing)


def _limited(site: Site, **limits: int) -> requests.Requests:
    return requests.Requests(site.world.database, dataclasses.replace(LIMITS, **limits))


def _living(site: Site, host: str) -> str:
    site.world.living(host)
    return host


def _take_over(site: Site, pin: model.Pin) -> None:
    """Take over a pin, whose keeper is slow, as another conductor."""
    site.world.change(models.Pin, models.Pin.id == pin.id, keeper_lease_until=LONG_AGO)
    site.reconciler('c2').run()
    assert len(site.asked(pin)) == 1


class _Interrupted(requests.Requests):
    """Accepts a request after a callback has run."""

    def __init__(self, inner: requests.Requests, happens: Any) -> None:
        self._inner = inner
        self._happens = happens
        self.accepted: list[str] = []

    def accept(self, new: requests.NewRequest) -> model.CacheRequest:
        self._happens()
        request = self._inner.accept(new)
        self.accepted.append(request.id)
        return request


def test_pin_checked_under_its_request_ids(site: Site, lines: Lines) -> None:
    made = {site.pin([f'h{n}'], request_id=f'req-{n}').id: f'req-{n}' for n in (1, 2)}

    site.round()

    told = {(made[pin], current) for pin, current, _ in lines.about(made)}
    assert told == {('req-1', 'req-1'), ('req-2', 'req-2')}


# Kernels and ramdisks


def _with_kernel(site: Site) -> tuple[model.Pin, str, str]:
    """Pin an image that names a kernel."""
    kernel = site.images.add(b'a kernel!')
    pin = site.pin(['h1'])
    [image_id] = pin.images
    site.images.update(image_id, kernel_id=kernel.id)
    return pin, image_id, kernel.id


def test_missing_kernel_is_requested(site: Site) -> None:
    pin, image_id, kernel_id = _with_kernel(site)
    site.report('h1', [image_id], _just_now(site))
    site.round()
    assert site.files(pin) == [{('h1', image_id)}]

    site.finish(pin, 'cached')
    site.report('h1', [image_id, kernel_id], _just_now(site))
    site.round()
    assert len(site.asked(pin)) == 1


def test_partial_kernel_is_requested(site: Site) -> None:
    pin, image_id, kernel_id = _with_kernel(site)
    site.images.update(kernel_id, size=10)  # of which the host has 9 bytes
    site.report('h1', [image_id, kernel_id], _just_now(site))
    site.round()
    assert site.files(pin) == [{('h1', image_id)}]


def test_older_kernel_of_image_kept_young(site: Site) -> None:
    pin, image_id, kernel_id = _with_kernel(site)
    now = _just_now(site)
    files = [
        model.CachedImage('h1', layout.base_name(each), each, 9, 9, touched_at)
        for each, touched_at in ((image_id, now), (kernel_id, LONG_AGO))
    ]
    site.caches.record([caches.Report('h1', files, [], full=True)])
    site.round()
    assert site.files(pin) == [{('h1', image_id)}]


def test_image_without_kernel_cannot_be_kept(site: Site) -> None:
    pin, image_id, kernel_id = _with_kernel(site)
    site.images.delete(kernel_id)
    site.round()
    assert site.asked(pin) == []
    reason = f'Image {image_id} cannot be booted without its kernel_id {kernel_id}: '
    assert str(site.now(pin).reason).startswith(f'no image is available: {reason}')
