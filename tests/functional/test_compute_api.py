# SPDX-License-Identifier: Apache-2.0
"""The compute API as its clients see it: each file of gabbits is a sequence of requests.

A sequence runs against an API of its own, in this process, with three mapped hosts, the
last of which never reported, two active images and one inactive; the first host has the
first image.
"""

import datetime
import hashlib
import pathlib
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gabbi import handlers, suitemaker, utils

from nova_precache import conf as options, model, policy
from nova_precache.api import app
from nova_precache.cells import inventory, names
from nova_precache.db import (
    agents,
    caches,
    hearing,
    jobs,
    pins,
    request_actions,
    requests,
    statistics,
)
from nova_precache.db.engine import schema, session
from nova_precache.image import fake
from nova_precache.wiring import common

GABBITS = pathlib.Path(__file__).parent / 'gabbits'
HOSTS = ('host1', 'host2', 'host3')
IMAGES = {
    '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a01': 'active',
    '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a02': 'active',
    '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a03': 'deactivated',
}

Application = Callable[..., Any]


@pytest.fixture
def application(tmp_path: pathlib.Path) -> Iterator[Application]:
    """The API without aggregates, with a fake image service; wake-up casts go nowhere."""
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('connection', f'sqlite:///{tmp_path}/precache.sqlite', 'database')
    database = session.connect(conf)
    schema.sync(database)
    stock = inventory.Inventory(database)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host in HOSTS:
        stock.map_host(host, cell.uuid)
    for host in HOSTS[:2]:
        agents.Agents(database, 60).register(model.Agent(host, f'agent-{host}', cell.uuid))
    caches.Caches(database).record(
        [caches.Report(HOSTS[0], [_file(HOSTS[0], next(iter(IMAGES)))], full=True)]
    )
    images = fake.FakeImageService()
    for image_id, status in IMAGES.items():
        images.add(b'some bytes', id=image_id, status=status)
    services = app.Services(
        inventory=stock,
        requests=requests.Requests(database, requests.RequestLimits(32, 1000, 100)),
        actions=request_actions.RequestActions(database),
        agents=agents.Agents(database, conf.service_down_time),
        caches=caches.Caches(database),
        pins=pins.Pins(database),
        explanations=common.explanation_store(conf, database, stock),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        services=common.service_store(conf, database),
        hearings=hearing.Hearings(database),
        cell_names=names.CellNames(stock),
        count_hosts=statistics.Statistics(database, conf.service_down_time).hosts,
        images_for=lambda context: images,
        wake=lambda: None,
        why_unsupported=lambda: None,
        enforcer=policy.Enforcer(conf),
    )
    yield app.build(conf, services)
    database.dispose()


def _file(host: str, image_id: str) -> model.CachedImage:
    """A file of the image in a cache, last touched in 2026 and unused."""
    name = hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
    touched_at = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    return model.CachedImage(host, name, None, 2048, 1024, touched_at, used_by=0)


@pytest.mark.parametrize('story', sorted(GABBITS.glob('*.yaml')), ids=lambda path: path.stem)
def test_compute_api_story_passes(story: pathlib.Path, application: Application) -> None:
    suite = suitemaker.test_suite_from_dict(
        unittest.TestLoader(),
        story.stem,
        utils.load_yaml(yaml_file=str(story)),
        str(GABBITS),
        'api.example',
        8774,
        fixture_module=None,
        intercept=lambda: application,
        handlers=[handler() for handler in handlers.RESPONSE_HANDLERS],
        test_loader_name='gabbits',
    )
    result = unittest.TestResult()
    suite.run(result)

    assert result.testsRun == suite.countTestCases() > 0
    assert [(str(test), said) for test, said in (*result.failures, *result.errors)] == []
