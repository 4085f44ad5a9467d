# SPDX-License-Identifier: Apache-2.0
"""What /v1 refuses, and does not pretend to know, where stock nova-computes cache images."""

from collections.abc import Callable
from typing import Any

import pytest
from oslo_config import cfg

from nova_precache import model
from nova_precache.db import agents, untold
from tests.unit.api.conftest import Api

UNTOLD = 'It is not known what is in the caches: with compute_backend = nova no host tells.'


@pytest.fixture
def beside(conf: cfg.ConfigOpts, api: Api, rebuild: Callable[..., Api]) -> Api:
    conf.set_override('compute_backend', 'nova', 'image_cache')
    return rebuild(caches=untold.UntoldCaches(api.database))


@pytest.fixture
def asked(beside: Api, aggregate: model.Aggregate) -> dict[str, Any]:
    return {'aggregate': aggregate.id, 'images': [beside.images.add(b'data').id]}


@pytest.mark.parametrize('path', ['/v1/requests', '/v1/estimate'])
def test_a_rate_is_refused(beside: Api, asked: dict[str, Any], path: str) -> None:
    refused = beside.post(path, {'request': {**asked, 'max_rate_bytes': 5}})

    assert refused.status_int == 400
    assert refused.json['badRequest']['message'] == (
        'Invalid input for field/attribute max_rate_bytes. Value: 5. '
        'A stock nova-compute does not heed it.'
    )
    assert beside.saved_requests() == 0


def test_what_is_no_limit_is_not_refused(beside: Api, asked: dict[str, Any]) -> None:
    made = beside.post('/v1/requests', {'request': {**asked, 'max_rate_bytes': None}})

    assert made.status_int == 202


def test_keeping_what_came_of_a_cancelled_call_is_refused_and_the_cancel_is_not(
    beside: Api, asked: dict[str, Any]
) -> None:
    made = beside.post('/v1/requests', {'request': asked}).json['request']
    action = f'/v1/requests/{made["id"]}/action'

    assert beside.post(action, {'cancel': {'keep_partial': True}}).status_int == 400
    assert beside.get(f'/v1/requests/{made["id"]}').json['request']['status'] == 'accepted'
    assert beside.post(action, {'cancel': {'keep_partial': False}}).status_int == 202


def _have_living_hosts(beside: Api) -> None:
    for host in ('host1', 'host2'):
        agents.Agents(beside.database, 60).register(model.Agent(host, f'agent-{host}', 'cell'))


@pytest.mark.parametrize('of', ['host', 'image'])
def test_what_is_in_caches_is_told_by_nobody(beside: Api, asked: dict[str, Any], of: str) -> None:
    paths = {'host': '/v1/hosts/host1/images', 'image': f'/v1/images/{asked["images"][0]}/hosts'}
    _have_living_hosts(beside)

    answer = beside.get(paths[of])

    assert (answer.status_int, answer.json['conflictingRequest']['message']) == (409, UNTOLD)


def test_an_estimate_says_that_nothing_is_known(beside: Api, asked: dict[str, Any]) -> None:
    _have_living_hosts(beside)

    estimate = beside.post('/v1/estimate', {'request': asked}).json['estimate']

    hosts = estimate['hosts']
    assert {image['state'] for host in hosts for image in host['images']} == {'unknown'}
    assert {(host['fits'], host['free_bytes'], host['seconds']) for host in hosts} == {
        (None, None, None)
    }


def test_how_much_of_a_pin_is_there_is_not_known(beside: Api, asked: dict[str, Any]) -> None:
    made = beside.post('/v1/pins', {'pin': asked})

    assert made.json['pin']['coverage'] == {'wanted': 2, 'cached': None}
