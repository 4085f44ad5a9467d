# SPDX-License-Identifier: Apache-2.0
"""The compute API as its clients see it: each file of gabbits is a story of requests.

A story runs against an API of its own, in this process, with three mapped hosts, two
images that are active and one that is not.
"""

import pathlib
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gabbi import handlers, suitemaker, utils

from nova_precache import conf as options
from nova_precache import policy
from nova_precache.api import app
from nova_precache.cells import inventory
from nova_precache.db import requests, schema, session
from nova_precache.image import fake

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
    """The API without aggregates, before a fake image service; nobody hears its bell."""
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('connection', f'sqlite:///{tmp_path}/precache.sqlite', 'database')
    database = session.connect(conf)
    schema.sync(database)
    stock = inventory.Inventory(database)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host in HOSTS:
        stock.map_host(host, cell.uuid)
    images = fake.FakeImageService()
    for image_id, status in IMAGES.items():
        images.add(b'some bytes', id=image_id, status=status)
    services = app.Services(
        inventory=stock,
        requests=requests.Requests(database, requests.Limits(32, 1000, 100)),
        images_for=lambda context: images,
        wake=lambda: None,
        enforcer=policy.Enforcer(conf),
    )
    yield app.build(conf, services)
    database.dispose()


@pytest.mark.parametrize('story', sorted(GABBITS.glob('*.yaml')), ids=lambda path: path.stem)
def test_the_requests_are_answered_as_told(story: pathlib.Path, application: Application) -> None:
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
