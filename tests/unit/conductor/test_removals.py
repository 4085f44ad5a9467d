# SPDX-License-Identifier: Apache-2.0
"""Removals from caches: what the database forbids, the call, and what is recorded afterwards."""

import dataclasses
import datetime
from collections.abc import Collection, Sequence

import pytest

from nova_precache import context, exception, model
from nova_precache.cache import layout
from nova_precache.cells import breaker
from nova_precache.conductor import removals, report_buffer
from nova_precache.db import caches, pins
from nova_precache.db.engine import models
from tests import statements
from tests.unit.conftest import World

CTXT = context.admin_context()
IMAGE, OTHER = (f'7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5{n}' for n in (1, 2))
NAME = layout.base_name(IMAGE)
NOW = datetime.datetime(2030, 1, 1)  # noqa: DTZ001 - as the database keeps it


@dataclasses.dataclass
class Site:
    """A conductor with a compute that a test scripts; it serves every host of every cell."""

    world: World
    answer: model.ImageRemoval | Exception = model.ImageRemoval(  # noqa: RUF009 - it is frozen
        'removed', freed_bytes=5, names=(NAME,)
    )
    calls: list[tuple[str, str, Sequence[str]]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.caches = caches.Caches(self.world.database)
        self.pins = pins.Pins(self.world.database)
        self.breakers = breaker.CellBreakers(10, lambda: 1000.0)
        self.reports = report_buffer.ReportBuffer(self.world.agents, self.world.jobs, self.caches)
        self.removals = removals.Removals(
            self.world.agents,
            self.world.inventory,
            self.pins,
            self.world.jobs,
            self.reports,
            lambda cell_uuid: self,
            self.breakers,
        )

    def remove_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_id: str,
        kept_ids: Collection[str] = (),
    ) -> model.ImageRemoval:
        self.calls.append((host, image_id, sorted(kept_ids)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def remove(self, host: str = 'h1', image_id: str = IMAGE) -> model.ImageRemoval:
        return self.removals.remove(CTXT, host, image_id)

    def hold(self, *hosts: str) -> None:
        """Report that hosts have both images."""
        for host in hosts:
            files = [
                model.CachedImage(host, layout.base_name(image), image, 9, 9, NOW)
                for image in (IMAGE, OTHER)
            ]
            self.caches.record([caches.Report(host, files, full=True)])

    def hosts_of(self, image_id: str) -> list[str]:
        return [each.host for each in self.caches.hosts_of(image_id)]

    def share(self, *hosts: str) -> None:
        for host in hosts:
            self.world.change(models.Agent, models.Agent.host == host, store_id='nfs')


@pytest.fixture
def site(world: World) -> Site:
    for host in ('h1', 'h2', 'h3'):
        world.living(host)
    return Site(world)


def test_removal_recorded_at_once(site: Site) -> None:
    site.hold('h1', 'h2')
    assert site.remove() == site.answer
    assert site.calls == [('h1', IMAGE, [])]
    assert site.hosts_of(IMAGE) == ['h2']
    assert site.hosts_of(OTHER) == ['h1', 'h2']


def test_removal_follows_buffered_report(site: Site) -> None:
    """A report from before the removal is written before it."""
    agent = site.world.agents.get(['h1'])['h1']
    file = model.CachedImage('h1', NAME, IMAGE, 9, 9, NOW)
    site.reports.add_images(agent.agent_id, caches.Report('h1', [file], full=True))
    site.remove()
    assert site.hosts_of(IMAGE) == []


def test_absent_image_recorded_as_gone(site: Site) -> None:
    site.hold('h1')
    site.answer = model.ImageRemoval('absent')
    assert site.remove().status == 'absent'
    assert site.hosts_of(IMAGE) == []


def test_used_image_stays_recorded(site: Site) -> None:
    site.hold('h1')
    site.answer = model.ImageRemoval('used', 'an instance uses it')
    assert site.remove() == site.answer
    assert site.hosts_of(IMAGE) == ['h1']


def test_shared_cache_recorded_for_all(site: Site) -> None:
    site.share('h1', 'h2')
    site.hold('h1', 'h2', 'h3')
    site.remove()
    assert site.calls == [('h1', IMAGE, [])]
    assert site.hosts_of(IMAGE) == ['h3']


def test_shared_cache_takes_constant_statements(site: Site) -> None:
    def count(hosts: int) -> int:
        names = [f'h{n}' for n in range(1, hosts + 1)]
        for name in names:
            site.world.living(name)
        site.share(*names)
        with statements.recorded(site.world.database) as sent:
            assert site.remove().status == 'removed'
        return len(sent)

    assert count(2) == count(9)


@pytest.mark.parametrize('pinned_host', ['h1', 'h2'])
def test_pinned_image_stays(site: Site, pinned_host: str) -> None:
    site.share('h1', 'h2')
    aggregate = site.world.inventory.create_aggregate('golden')
    site.world.inventory.add_host(aggregate.id, pinned_host)
    pin = site.pins.create(pins.NewPin(aggregate, (IMAGE,)))
    assert site.remove() == model.ImageRemoval(
        'pinned', f'pin {pin.id} keeps it on aggregate golden'
    )
    assert site.calls == []
    site.pins.end(pin.id, 'no longer needed')
    assert site.remove().status == 'removed'


def test_other_hosts_pin_keeps_nothing(site: Site) -> None:
    aggregate = site.world.inventory.create_aggregate('golden')
    site.world.inventory.add_host(aggregate.id, 'h2')
    site.pins.create(pins.NewPin(aggregate, (IMAGE,)))
    assert site.remove('h1').status == 'removed'


def test_other_pinned_images_kept(site: Site) -> None:
    aggregate = site.world.inventory.create_aggregate('golden')
    site.world.inventory.add_host(aggregate.id, 'h1')
    site.pins.create(pins.NewPin(aggregate, (OTHER,)))
    site.remove()
    assert site.calls == [('h1', IMAGE, [OTHER])]


@pytest.mark.parametrize('wanting_host', ['h1', 'h2'])
def test_requested_image_stays(site: Site, wanting_host: str) -> None:
    site.share('h1', 'h2')
    request = site.world.planned([wanting_host], [IMAGE])
    assert site.remove() == model.ImageRemoval(
        'used', f'request {request.id} wants it on host {wanting_host}: queued'
    )
    assert site.calls == []
    begun = site.world.begun()
    assert site.remove().reason == (
        f'request {request.id} wants it on host {wanting_host}: downloading'
    )
    site.world.jobs.finish(begun.job_id, begun.epoch, model.ImageOutcome('cached'))
    assert site.remove().status == 'removed'


def test_requests_elsewhere_ignored(site: Site) -> None:
    site.world.planned(['h1', 'h2'], [OTHER])
    assert site.remove('h3', OTHER).status == 'removed'
    assert site.remove('h1', IMAGE).status == 'removed'


def test_unknown_host_is_named(site: Site) -> None:
    with pytest.raises(exception.ComputeHostNotFound, match='h9'):
        site.remove('h9')


@pytest.mark.parametrize(
    ('error', 'raised', 'why'),
    [
        (
            TimeoutError(),
            exception.NoAnswer,
            rf'Host h1 has not answered within 4\.5 s; it may still remove image {IMAGE}\.',
        ),
        (
            exception.CellUnreachable('no route'),
            exception.NoAnswer,
            'The message broker of the cell of host h1 does not answer: no route',
        ),
        (
            exception.VersionUnsupported('it is of 1.4'),
            exception.VersionUnsupported,
            r'The compute of host h1 cannot remove images: it is of 1\.4',
        ),
        (
            exception.StorageError('disk: I/O error'),
            exception.RemovalRefused,
            f'Image {IMAGE} cannot be removed from host h1: disk: I/O error',
        ),
        (
            exception.BackendUnsupported('rbd keeps no files'),
            exception.RemovalRefused,
            'rbd keeps no files',
        ),
    ],
)
def test_failed_call_keeps_record(
    site: Site, error: Exception, raised: type[Exception], why: str
) -> None:
    site.hold('h1')
    site.answer = error
    with pytest.raises(raised, match=why):
        site.remove()
    assert site.hosts_of(IMAGE) == ['h1']


def test_resting_cell_not_called(site: Site) -> None:
    site.answer = exception.CellUnreachable('no route')
    for _ in range(2):
        with pytest.raises(exception.NoAnswer, match='broker of the cell of host h1'):
            site.remove()
    assert len(site.calls) == 1


def test_cell_without_broker_refuses(site: Site) -> None:
    site.answer = exception.ConfigError('cell cell1 cannot be reached')
    with pytest.raises(exception.RemovalRefused, match='cell cell1 cannot be reached'):
        site.remove()
