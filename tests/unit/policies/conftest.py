# SPDX-License-Identifier: Apache-2.0
"""The API on a real database, before an image service that has one image."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import webob

from nova_precache import conf as configuration, model
from nova_precache.cells import inventory
from nova_precache.db import agents, pins, requests
from nova_precache.db.engine import session
from nova_precache.image import fake
from tests.unit.api import conftest as api_parts

PROJECT = 'p1'
IMAGE = '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'
HOST, FREE_HOST = 'host1', 'host2'

_AWAY = """\
[keystone_authtoken]
www_authenticate_uri = http://127.0.0.1:9
auth_type = admin_token
endpoint = http://127.0.0.1:9
token = none
http_request_max_retries = 0
service_token_roles_required = true
"""


@dataclasses.dataclass
class Site:
    """The API, aggregates with and without a host; a request and a pin of :data:`PROJECT`."""

    api: Any
    aggregate: model.Aggregate
    empty: model.Aggregate
    request: model.CacheRequest
    pin: model.Pin

    def ask(self, method: str, path: str, body: Any, token: str | None) -> webob.Response:
        """Send a request; ``{aggregate}``, ``{empty}``, ``{request}``, ``{pin}`` in its path."""
        named = path.format(
            aggregate=self.aggregate.id,
            empty=self.empty.id,
            request=self.request.id,
            pin=self.pin.id,
        )
        answer: webob.Response = self.api.call(method, named, body, token=token)
        return answer


class MakeSite(Protocol):
    """Makes a site with an operator's policy file; None stands for no file.

    With the strategy ``keystone``, its Keystone is unreachable.
    """

    def __call__(self, policy: str | None = None, strategy: str = 'noauth2') -> Site: ...


@pytest.fixture
def make_site(tmp_path: pathlib.Path, database: session.Database) -> MakeSite:
    def make(policy: str | None = None, strategy: str = 'noauth2') -> Site:
        conf = tmp_path / 'nova-precache.conf'
        file = tmp_path / 'policy.yaml'
        conf.write_text(
            f'[api]\nauth_strategy = {strategy}\n[oslo_policy]\npolicy_file = {file}\n{_AWAY}'
        )
        if policy is not None:
            file.write_text(policy)
        return _populate(_make_api(conf, database))

    return make


def _make_api(path: pathlib.Path, database: session.Database) -> Any:
    images = fake.FakeImageService()
    images.add(b'data', id=IMAGE)
    images_for: Callable[[Any], fake.FakeImageService] = lambda context: images  # noqa: E731
    conf = configuration.new(config_files=[str(path)])
    stock = inventory.Inventory(database)
    return api_parts.make_api(conf, database, stock, images_for=images_for)


def _populate(api: Any) -> Site:
    cell = api.inventory.create_cell('cell1', 'fake:///cell1')
    for host in (HOST, FREE_HOST):
        api.inventory.map_host(host, cell.uuid)
    aggregate = api.inventory.add_host(api.inventory.create_aggregate('edge').id, HOST)
    empty = api.inventory.create_aggregate('empty')
    agents.Agents(api.database, 60).register(model.Agent(HOST, 'agent', cell.uuid))
    new = requests.NewRequest(aggregate=aggregate, images=(IMAGE,), project_id=PROJECT)
    pin = pins.NewPin(aggregate, (IMAGE,), project_id=PROJECT)
    return Site(
        api, aggregate, empty, api.requests.accept(new), pins.Pins(api.database).create(pin)
    )
