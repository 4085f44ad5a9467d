# SPDX-License-Identifier: Apache-2.0
"""What /v1 refuses, and does not pretend to know, when stock nova-computes cache images."""

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa
from oslo_config import cfg

from nova_precache import model
from nova_precache.api.schemas import hosts as schemas
from nova_precache.cells import liveness, novahosts
from nova_precache.db import agents, caches
from nova_precache.wiring import stock
from tests.unit.api.conftest import Api
from tests.unit.cells.conftest import CellDatabase, wait_patiently

UNTOLD = (
    'The contents of the caches are unknown: with compute_backend = nova, hosts report no '
    'inventory.'
)


@pytest.fixture
def beside(conf: cfg.ConfigOpts, api: Api, rebuild: Callable[..., Api]) -> Api:
    conf.set_override('compute_backend', 'nova', 'image_cache')
    return rebuild(caches=caches.UnreportedCaches(api.database), remove=stock.refuse_removal)


@pytest.fixture
def hosts(
    conf: cfg.ConfigOpts, api: Api, rebuild: Callable[..., Api], tmp_path: pathlib.Path
) -> Iterator[Api]:
    """Two hosts of a cell that reports one of them, and one of a cell that reports nothing."""
    novas = CellDatabase(tmp_path / 'nova_cell1.sqlite')
    novas.add('one')
    novas.close()
    for name, url, mapped in (('n1', novas.url, ('one', 'two')), ('n2', '', ('three',))):
        cell = api.inventory.create_cell(name, f'fake:///{name}', url)
        for host in mapped:
            api.inventory.map_host(host, cell.uuid)
    alive = liveness.NovaLiveness(api.inventory, 60, time.monotonic, wait_patiently)
    stores = {'agents': novahosts.NovaHosts(api.inventory, alive)}
    yield rebuild(**stores, snapshot=api.database.one_snapshot)
    alive.close()


def test_hosts_show_only_data_of_cells(hosts: Api) -> None:
    shown = {each: hosts.get(f'/v1/hosts/{each}').json['host'] for each in ('one', 'two', 'three')}

    for host in shown.values():
        jsonschema.validate(host, schemas.HOST)
    assert {name: (host['status'], host['reason']) for name, host in shown.items()} == {
        'one': ('up', None),
        'two': ('down', 'host down: it has no nova-compute service'),
        'three': ('unknown', "cell n2's database is unreachable (its mapping has no database URL)"),
    }
    assert [host['seen_at'] is None for host in shown.values()] == [False, True, True]
    by_agents = ('version', 'driver', 'store_id', 'cache_bytes', 'free_bytes')
    assert {host[key] for host in shown.values() for key in by_agents} == {None}
    assert hosts.get('/v1/hosts/four').status_int == 404


def test_cells_asked_outside_transaction(hosts: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, held = hosts.database.engine.pool, list[int]()
    assert isinstance(pool, sa.QueuePool)
    ask = liveness.NovaLiveness.look_at

    def note(*args: Any, **kwargs: Any) -> liveness.Look:
        held.append(pool.checkedout())
        return ask(*args, **kwargs)

    monkeypatch.setattr(liveness.NovaLiveness, 'look_at', note)
    assert hosts.get('/v1/hosts/one').status_int == 200

    assert held == [0]


@pytest.mark.parametrize(
    ('status', 'expected'), [('up', ['one']), ('down', ['two']), ('unknown', ['three'])]
)
def test_hosts_filtered_by_data_of_cells(hosts: Api, status: str, expected: list[str]) -> None:
    mapped = {'one', 'two', 'three'}

    found = hosts.get(f'/v1/hosts?status={status}').json['hosts']

    assert [host['host'] for host in found if host['host'] in mapped] == expected


@pytest.fixture
def asked(beside: Api, aggregate: model.Aggregate) -> dict[str, Any]:
    return {'aggregate': aggregate.id, 'images': [beside.images.add(b'data').id]}


@pytest.mark.parametrize('path', ['/v1/requests', '/v1/estimate'])
def test_rate_limit_is_refused(beside: Api, asked: dict[str, Any], path: str) -> None:
    refused = beside.post(path, {'request': {**asked, 'max_rate_bytes': 5}})

    assert refused.status_int == 400
    assert refused.json['badRequest']['message'] == (
        'Invalid input for field/attribute max_rate_bytes. Value: 5. A stock nova-compute '
        'does not support it.'
    )
    assert beside.saved_requests() == 0


def test_request_without_rate_limit_accepted(beside: Api, asked: dict[str, Any]) -> None:
    made = beside.post('/v1/requests', {'request': {**asked, 'max_rate_bytes': None}})

    assert made.status_int == 202


def test_keep_partial_refused_but_cancel_accepted(beside: Api, asked: dict[str, Any]) -> None:
    made = beside.post('/v1/requests', {'request': asked}).json['request']
    action = f'/v1/requests/{made["id"]}/action'

    assert beside.post(action, {'cancel': {'keep_partial': True}}).status_int == 400
    assert beside.get(f'/v1/requests/{made["id"]}').json['request']['status'] == 'accepted'
    assert beside.post(action, {'cancel': {'keep_partial': False}}).status_int == 202


def _have_living_hosts(beside: Api) -> None:
    for host in ('host1', 'host2'):
        agents.Agents(beside.database, 60).register(model.Agent(host, f'agent-{host}', 'cell'))


@pytest.mark.parametrize('of', ['host', 'image'])
def test_caches_are_not_available(beside: Api, asked: dict[str, Any], of: str) -> None:
    paths = {'host': '/v1/hosts/host1/images', 'image': f'/v1/images/{asked["images"][0]}/hosts'}
    _have_living_hosts(beside)

    answer = beside.get(paths[of])

    assert (answer.status_int, answer.json['conflictingRequest']['message']) == (409, UNTOLD)


def test_removal_is_not_available(beside: Api, asked: dict[str, Any]) -> None:
    _have_living_hosts(beside)

    answer = beside.call('DELETE', f'/v1/hosts/host1/images/{asked["images"][0]}')

    assert answer.status_int == 409
    assert answer.json['conflictingRequest']['message'].startswith('With compute_backend = nova, ')


def test_estimate_is_unknown(beside: Api, asked: dict[str, Any]) -> None:
    _have_living_hosts(beside)

    estimate = beside.post('/v1/estimate', {'request': asked}).json['estimate']

    hosts = estimate['hosts']
    assert {image['state'] for host in hosts for image in host['images']} == {'unknown'}
    assert {(host['fits'], host['free_bytes'], host['seconds']) for host in hosts} == {
        (None, None, None)
    }


def test_pin_coverage_is_unknown(beside: Api, asked: dict[str, Any]) -> None:
    made = beside.post('/v1/pins', {'pin': asked})

    assert made.json['pin']['coverage'] == {'wanted': 2, 'cached': None}
