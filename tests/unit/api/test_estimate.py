# SPDX-License-Identifier: Apache-2.0
"""POST /v1/estimate: its answer about real hosts, and that it changes nothing."""

import datetime
from typing import Any

import jsonschema
import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.api import request
from nova_precache.api.schemas import requests as schemas
from nova_precache.cache import layout
from nova_precache.db import agents, caches, jobs
from nova_precache.db.engine import models
from nova_precache.db.request import plan as request_plan

NOON = datetime.datetime(2026, 5, 1, 12)  # noqa: DTZ001 - as the database keeps it


class Rates:
    """Recently measured rates."""

    def __init__(self, rates: dict[str, float]) -> None:
        self.rates = rates

    def measured_rates(self, hosts: Any) -> dict[str, float]:
        return {host: rate for host, rate in self.rates.items() if host in hosts}


@pytest.fixture
def living(api: Any) -> None:
    """Make host1 and host2 report; host2 reports a full, empty inventory."""
    cell = api.inventory.list_cells()[0].uuid
    reports = agents.Agents(api.database, 60)
    for host in ('host1', 'host2'):
        reports.register(model.Agent(host, f'agent-{host}', cell, free_bytes=10 * 1024**3))
    caches.Caches(api.database).record([caches.Report('host2', [], full=True)])


def estimate(api: Any, query: str = '', token: str | None = None, **fields: Any) -> Any:
    return api.post(f'/v1/estimate{query}', {'request': fields}, token=token)


def estimated(response: Any) -> Any:
    assert response.status_int == 200, response.text
    jsonschema.validate(response.json, schemas.ESTIMATE_ANSWER)
    return response.json['estimate']


@pytest.mark.usefixtures('living')
def test_estimate_shows_hosts_totals_and_load(rebuild: Any, aggregate: Any) -> None:
    api = rebuild(rates=Rates({'host1': 3, 'host9': 100}))
    api.inventory.add_host(aggregate.id, 'host3')
    image = api.images.add(b'x' * 100, disk_format='qcow2', virtual_size=1000)
    cell = api.inventory.list_cells()[0].uuid
    caches.Caches(api.database).record([caches.Report('host1', [], full=True)])

    told = estimated(estimate(api, aggregate='edge', images=[image.id]))
    first, second, third = told['hosts']
    assert first == {
        'host': 'host1',
        'cell': cell,
        'cell_name': 'cell1',
        'status': 'up',
        'reason': None,
        'images': [
            {
                'image_id': image.id,
                'state': 'missing',
                'bytes_to_move': 100,
                'space_needed_bytes': 1100,
            }
        ],
        'bytes_to_move': 100,
        'space_needed_bytes': 1100,
        'free_bytes': 10 * 1024**3,
        'fits': True,
        'rate_bytes': 3,
        'seconds': 34,
    }
    assert (second['host'], second['rate_bytes'], second['seconds']) == ('host2', 3, 34)
    assert (third['status'], third['bytes_to_move']) == ('down', 0)
    assert third['reason'] == 'host down: it has never reported'
    assert third['images'][0]['state'] == 'unknown'
    assert told['totals'] == {
        'hosts': 3,
        'hosts_down': 1,
        'tasks': 3,
        'tasks_cached': 0,
        'bytes_to_move': 200,
        'space_needed_bytes': 2200,
        'parallel_hosts': 1,
        'seconds': 67,
    }
    assert told['glance'] == {'bytes': 200, 'parallel_downloads': 1, 'rate_bytes': 3}


@pytest.mark.usefixtures('living')
def test_estimate_saves_and_casts_nothing(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'data').id
    estimated(estimate(api, aggregate='edge', images=[image], client_request_id='mine'))
    assert api.saved_requests() == 0
    assert api.wakes == []
    assert api.images.served_bytes == 0


@pytest.mark.usefixtures('living')
def test_reported_reserve_of_host_counts(api: Any, aggregate: Any) -> None:
    cell = api.inventory.list_cells()[0].uuid
    reserves = {'reserved_disk_bytes': 10 * 1024**3}
    full = model.Agent('host1', 'agent-host1', cell, free_bytes=10 * 1024**3, capabilities=reserves)
    assert agents.Agents(api.database, 60).report([full]) == []
    image = api.images.add(b'data').id

    told = estimated(estimate(api, aggregate='edge', images=[image]))

    assert {host['host']: host['fits'] for host in told['hosts']} == {'host1': False, 'host2': True}


@pytest.mark.usefixtures('living')
def test_cached_images_not_moved(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'data').id
    name = layout.base_name(image)
    file = model.CachedImage('host1', name, image, 4, 4096, NOON)
    caches.Caches(api.database).record([caches.Report('host1', [file], full=True)])
    told = estimated(estimate(api, aggregate='edge', images=[image]))
    assert [host['images'][0]['state'] for host in told['hosts']] == ['cached', 'missing']
    assert (told['totals']['tasks_cached'], told['totals']['bytes_to_move']) == (1, 4)


@pytest.mark.usefixtures('living')
def test_without_measurements_there_is_no_duration(api: Any, aggregate: Any) -> None:
    told = estimated(estimate(api, aggregate='edge', images=[api.images.add(b'data').id]))
    assert [host['seconds'] for host in told['hosts']] == [None, None]
    assert (told['totals']['seconds'], told['glance']['rate_bytes']) == (None, None)


@pytest.mark.usefixtures('living')
def test_rates_come_from_recent_downloads(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'x' * 100).id
    asked = {'aggregate': 'edge', 'images': [image]}
    made = api.post('/v1/requests', {'request': asked}).json['request']
    taken = api.requests.next_to_plan('c1')
    cell = api.inventory.list_cells()[0].uuid
    task = request_plan.PlannedTask('host1', cell, taken.request.images[0])
    assert api.requests.add_tasks(made['id'], 'c1', [task])
    assert api.requests.mark_planned(made['id'], 'c1')
    work = jobs.Jobs(api.database, 30)
    (claimed,) = work.claim_hosts('c1', limit=1)
    job = claimed.first
    assert work.begin(job.job_id, job.epoch)
    outcome = model.ImageOutcome(model.TaskStatus.CACHED, bytes_done=100, bytes_total=100)
    work.finish(job.job_id, job.epoch, outcome)
    _let_it_have_taken(api, 20)

    told = estimated(estimate(api, **asked))
    assert [host['rate_bytes'] for host in told['hosts']] == [5, 5]
    assert [host['seconds'] for host in told['hosts']] == [20, 20]
    assert told['totals']['seconds'] == 40


def _let_it_have_taken(api: Any, seconds: int) -> None:
    def work(session: Any) -> None:
        (job,) = session.scalars(sa.select(models.Job))
        job.started_at = job.finished_at - datetime.timedelta(seconds=seconds)

    api.database.write(work)


@pytest.mark.usefixtures('living')
def test_unmeasured_hosts_use_other_rates(rebuild: Any, aggregate: Any) -> None:
    api = rebuild(rates=Rates({'host2': 2}))
    image = api.images.add(b'data').id
    (host,) = estimated(estimate(api, hosts=['host1'], images=[image]))['hosts']
    assert (host['rate_bytes'], host['seconds']) == (2, 2)


@pytest.mark.usefixtures('living')
def test_hosts_paged_under_same_totals(api: Any) -> None:
    fields = {'hosts': ['host2', 'host3', 'host1'], 'images': [api.images.add(b'data').id]}
    first = estimate(api, '?limit=2', **fields)
    assert [host['host'] for host in estimated(first)['hosts']] == ['host2', 'host3']
    (link,) = first.json['hosts_links']
    assert link['rel'] == 'next'
    assert link['href'].startswith('http://api.example:8774/v1/estimate?')
    second = estimate(api, f'?{link["href"].partition("?")[2]}', **fields)
    assert [host['host'] for host in estimated(second)['hosts']] == ['host1']
    assert 'hosts_links' not in second.json
    assert estimated(first)['totals'] == estimated(second)['totals']


@pytest.mark.parametrize(
    ('query', 'field'), [('?limit=0', 'limit'), ('?marker=host9', 'marker'), ('?x=1', 'x')]
)
def test_bad_query_refused_naming_parameter(api: Any, query: str, field: str) -> None:
    response = estimate(api, query, hosts=['host1'], images=[api.images.add(b'data').id])
    assert response.status_int == 400
    assert field in response.json['badRequest']['message']


def test_request_rules_apply_to_estimate(api: Any, aggregate: Any) -> None:
    image = api.images.add(b'data').id
    for fields, status in (
        ({'aggregate': 'nowhere', 'images': [image]}, 404),
        ({'aggregate': 'edge', 'images': []}, 400),
        ({'aggregate': 'edge', 'images': [image], 'deadline': '2001-01-01T00:00:00Z'}, 400),
        ({'hosts': ['host9'], 'images': [image]}, 400),
    ):
        assert estimate(api, **fields).status_int == status


@pytest.mark.parametrize('token', ['u:p', 'u:p:reader', 'u:p:member,manager'])
def test_non_admin_is_forbidden(api: Any, aggregate: Any, token: str) -> None:
    image = api.images.add(b'data').id
    response = estimate(api, token=token, aggregate='edge', images=[image])
    assert response.status_int == 403
    assert 'image_precache:estimate' in response.json['forbidden']['message']


def test_estimates_use_current_concurrency(conf: Any) -> None:
    settings = request.Settings.from_conf(conf)

    conf.set_override('precache_concurrency', 7, 'image_cache')

    assert settings.precache_concurrency() == 7
