# SPDX-License-Identifier: Apache-2.0
"""Estimates of a request: bytes and space as computes count them, time by rates."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from nova_precache import model
from nova_precache.api import estimator
from nova_precache.conductor import planner

RULES = estimator.EstimateRules(
    force_raw_images=True, reserved_disk_bytes=100, precache_concurrency=2
)
RAW = model.Image('raw', size=1000, disk_format='raw')
QCOW2 = model.Image('qcow2', size=300, virtual_size=2000, disk_format='qcow2')
NOTHING = model.RequestOptions()


def agent(host: str, **fields: Any) -> model.Agent:
    return model.Agent(host, f'agent-{host}', 'cell', **fields)


def facts(*hosts: str, **more: Any) -> estimator.FleetFacts:
    """Hosts of one cell that are up and have reported empty caches."""
    planned = planner.host_facts(
        hosts,
        more.pop('cells', dict.fromkeys(hosts, 'cell')),
        more.pop('listed', ()),
        more.pop('down', {}),
        agents=more.get('agents', {}),
    )
    return estimator.FleetFacts(hosts=planned, **{'known_hosts': set(hosts), **more})


def estimated(
    known: estimator.FleetFacts,
    *images: model.Image,
    rules: estimator.EstimateRules = RULES,
    **options: Any,
) -> estimator.Estimate:
    return estimator.estimate(images or (RAW,), model.RequestOptions(**options), known, rules)


def seconds(rates: Sequence[float], canary: int | None = None, **options: Any) -> float | None:
    """Estimate 1000 bytes for hosts with these rates, two at a time."""
    hosts = [f'h{number}' for number in range(len(rates))]
    known = facts(*hosts, rates=dict(zip(hosts, rates, strict=True)))
    return estimated(known, canary=canary, **options).seconds


def test_cached_image_costs_nothing() -> None:
    found = estimated(facts('h1', 'h2', present={('h1', 'raw')}, rates={'h2': 10}))
    there, missing = found.hosts
    assert [image.state for image in (*there.images, *missing.images)] == ['cached', 'missing']
    assert (there.bytes_to_move, there.space_needed_bytes, there.fits) == (0, 0, True)
    assert there.seconds == 0
    assert (missing.bytes_to_move, missing.space_needed_bytes) == (1000, 1000)
    assert (found.bytes_to_move, found.space_needed_bytes, found.seconds) == (1000, 1000, 100)
    assert found.count(estimator.ImageState.CACHED) == 1


def test_unreported_host_counts_as_uncached() -> None:
    (host,) = estimated(facts('h1', known_hosts=())).hosts
    (image,) = host.images
    assert (image.state, image.bytes_to_move) == ('unknown', 1000)


def test_conversion_needs_space_for_both_forms() -> None:
    (host,) = estimated(facts('h1'), QCOW2).hosts
    assert (host.bytes_to_move, host.space_needed_bytes) == (300, 2300)


@pytest.mark.parametrize('image', [RAW, model.Image('iso', size=1000, disk_format='iso')])
def test_bootable_format_not_converted(image: model.Image) -> None:
    (host,) = estimated(facts('h1'), image).hosts
    assert host.space_needed_bytes == 1000


def test_disabled_conversion_converts_nothing() -> None:
    rules = estimator.EstimateRules(
        force_raw_images=False, reserved_disk_bytes=0, precache_concurrency=1
    )
    (host,) = estimated(facts('h1'), QCOW2, rules=rules).hosts
    assert host.space_needed_bytes == 300


def test_images_need_space_one_by_one() -> None:
    smaller = model.Image('smaller', size=200, virtual_size=500, disk_format='qcow2')
    (host,) = estimated(facts('h1'), QCOW2, smaller).hosts
    assert [image.space_needed_bytes for image in host.images] == [2300, 700]
    assert host.space_needed_bytes == 2700  # the first one's download is gone by then


@pytest.mark.parametrize(('free_bytes', 'fits'), [(None, None), (1099, False), (1100, True)])
def test_reserve_stays_free(free_bytes: int | None, fits: bool | None) -> None:
    known = facts('h1', agents={'h1': agent('h1', free_bytes=free_bytes)})
    (host,) = estimated(known).hosts
    assert (host.free_bytes, host.fits) == (free_bytes, fits)


@pytest.mark.parametrize(
    ('reserved', 'fits'),
    [(0, True), (99, True), (101, False), (None, True), ('5', True), (-1, True), (True, True)],
)
def test_own_reserve_of_host_counts(reserved: object, fits: bool) -> None:
    own = agent('h1', free_bytes=1100, capabilities={'reserved_disk_bytes': reserved})
    old = agent('h2', free_bytes=1099)
    found = estimated(facts('h1', 'h2', agents={'h1': own, 'h2': old}))
    assert [host.fits for host in found.hosts] == [fits, False]


@pytest.mark.parametrize('of_api', [True, False])
def test_own_conversion_of_host_counts(of_api: bool) -> None:
    agents = {
        'raw': agent('raw', capabilities={'force_raw_images': True}),
        'kept': agent('kept', capabilities={'force_raw_images': False}),
        'old': agent('old'),
    }
    rules = dataclasses.replace(RULES, force_raw_images=of_api)
    found = estimated(facts('raw', 'kept', 'old', agents=agents), QCOW2, rules=rules)
    assert [host.space_needed_bytes for host in found.hosts] == [2300, 300, 2300 if of_api else 300]


def test_shared_store_downloads_once() -> None:
    agents = {host: agent(host, store_id='nfs') for host in ('h1', 'h2')}
    found = estimated(facts('h1', 'h2', 'h3', agents=agents))
    assert [host.bytes_to_move for host in found.hosts] == [1000, 0, 1000]
    assert [host.space_needed_bytes for host in found.hosts] == [1000, 0, 1000]
    assert [host.reason for host in found.hosts] == [None, 'shares its cache with h1', None]
    assert found.bytes_to_move == 2000


def test_shared_store_shares_cached_images() -> None:
    agents = {host: agent(host, store_id='nfs') for host in ('h1', 'h2')}
    found = estimated(facts('h1', 'h2', agents=agents, present={('h2', 'raw')}))
    assert found.count(estimator.ImageState.CACHED) == 2
    assert found.bytes_to_move == 0


def test_down_host_leaves_store_to_next() -> None:
    agents = {host: agent(host, store_id='nfs') for host in ('h1', 'h2')}
    found = estimated(facts('h1', 'h2', agents=agents, down={'h1': 'host down: quiet'}))
    assert [host.bytes_to_move for host in found.hosts] == [0, 1000]


def test_skipped_hosts_move_nothing_with_reason() -> None:
    known = facts(
        'off', 'down', 'lost', 'bare', 'up',
        cells={'off': 'disabled', 'down': 'cell', 'bare': 'cell', 'up': 'cell'},
        listed=[model.Cell('disabled', 'two', 'fake:///two', disabled=True)],
        down={'down': 'host down: quiet'},
        agents={'bare': agent('bare', driver='x', capabilities={'supports_cache_image': False})},
        rates={'up': 100},
    )  # fmt: skip
    found = estimated(known)
    assert [(host.status, host.reason, host.bytes_to_move) for host in found.hosts] == [
        ('down', 'cell two is disabled', 0),
        ('down', 'host down: quiet', 0),
        ('unmapped', 'host is not mapped to a cell', 0),
        ('up', 'driver x cannot cache images', 0),
        ('up', None, 1000),
    ]
    assert found.seconds == 10


def test_awaited_down_hosts_count() -> None:
    known = facts('h1', down={'h1': 'host down: quiet'}, rates={'h1': 100})
    found = estimated(known, wait_for_down_hosts=True)
    assert found.hosts[0].status == 'down'
    assert (found.bytes_to_move, found.seconds) == (1000, 10)


def test_unmeasured_host_gets_usual_rate() -> None:
    found = estimated(facts('h1', 'h2', rates={'h2': 10, 'h3': 50, 'h4': 20}))
    assert [host.rate_bytes for host in found.hosts] == [20, 10]


def test_without_measurements_time_is_unknown() -> None:
    found = estimated(facts('h1'), max_rate_bytes=10)
    assert (found.hosts[0].rate_bytes, found.hosts[0].seconds) == (None, None)
    assert (found.seconds, found.rate_bytes) == (None, None)


def test_request_rate_limits_hosts() -> None:
    found = estimated(facts('h1', 'h2', rates={'h1': 100, 'h2': 5}), max_rate_bytes=50)
    assert [host.rate_bytes for host in found.hosts] == [50, 5]
    assert [host.seconds for host in found.hosts] == [20, 200]


def test_hosts_take_first_free_slot() -> None:
    assert seconds([10, 100, 100, 100]) == 100  # one beside three
    assert seconds([100, 100, 100]) == 20
    assert seconds([100, 100, 100], max_parallel_hosts=1) == 30
    assert seconds([100, 100, 100], max_parallel_hosts=9) == 20  # two are configured
    assert seconds([]) == 0


def test_others_wait_for_canary() -> None:
    assert seconds([10, 100, 100]) == 100
    assert seconds([10, 100, 100], canary=1) == 110


def test_glance_load_follows_concurrency() -> None:
    rates = {'h1': 10, 'h2': 30, 'h3': 20}
    found = estimated(facts('h1', 'h2', 'h3', rates=rates))
    assert (found.parallel_hosts, found.rate_bytes, found.bytes_to_move) == (2, 50, 3000)
    alone = estimated(facts('h1', rates=rates))
    assert (alone.parallel_hosts, alone.rate_bytes) == (1, 10)
    nobody = estimated(facts('h1', present={('h1', 'raw')}, rates=rates))
    assert (nobody.parallel_hosts, nobody.rate_bytes) == (0, 0)


KERNEL = model.Image('kernel', size=50, disk_format='aki')
OTHER = model.Image('other', size=10, disk_format='raw', companions=(KERNEL,))
BOOTED = model.Image(
    'booted', size=300, virtual_size=2000, disk_format='qcow2', companions=(KERNEL,)
)


def test_kernel_counts_unconverted_with_image() -> None:
    (host,) = estimated(facts('h1'), BOOTED).hosts
    assert (host.bytes_to_move, host.space_needed_bytes) == (350, 2350)
    (image,) = host.images
    assert (image.image_id, image.bytes_to_move, image.space_needed_bytes) == ('booted', 350, 2350)


def test_shared_kernel_moves_once() -> None:
    (host,) = estimated(facts('h1'), BOOTED, OTHER).hosts
    assert [image.bytes_to_move for image in host.images] == [350, 10]
    assert (host.bytes_to_move, host.space_needed_bytes) == (360, 2350)
    (host,) = estimated(facts('h1', present={('h1', 'kernel')}), BOOTED, OTHER).hosts
    assert host.bytes_to_move == 310


@pytest.mark.parametrize(
    ('present', 'state', 'moved'),
    [
        ({'booted'}, 'missing', 50),
        ({'kernel'}, 'missing', 300),
        ({'booted', 'kernel'}, 'cached', 0),
    ],
)
def test_image_cached_only_with_kernel(present: set[str], state: str, moved: int) -> None:
    (host,) = estimated(facts('h1', present={('h1', each) for each in present}), BOOTED).hosts
    assert [(image.state, image.bytes_to_move) for image in host.images] == [(state, moved)]
