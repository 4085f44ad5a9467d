# SPDX-License-Identifier: Apache-2.0
"""The real application on a real SQLite, with a fake image service and a recorded wake-up cast."""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import webob
from oslo_config import cfg

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
    services as db_services,
    statistics,
)
from nova_precache.db.engine import models, schema, session
from nova_precache.image import fake
from nova_precache.wiring import common
from tests.unit.api import described

HOSTS = ('host1', 'host2', 'host3')


@dataclasses.dataclass
class Api:
    """A client of the application, and the parts behind it."""

    application: Callable[..., Any]
    conf: cfg.ConfigOpts
    database: session.Database
    inventory: inventory.Inventory
    requests: requests.Requests
    images: fake.FakeImageService
    wakes: list[None]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        version: str | None = '2.81',
        token: str | None = None,
        raw: bytes | None = None,
        headers: dict[str, str] | None = None,
        environ: dict[str, str] | None = None,
    ) -> webob.Response:
        """Send a request, and check that its answer is described.

        :param raw: the bytes of a body that is not (good) JSON
        """
        request = webob.Request.blank(
            path, environ, method=method, base_url='http://api.example:8774'
        )
        if body is not None:
            request.json = body
        if raw is not None:
            request.body = raw
        if version is not None and path.startswith('/v2.1'):
            request.headers['OpenStack-API-Version'] = f'compute {version}'
        if token is not None:
            request.headers['X-Auth-Token'] = token
        request.headers.update(headers or {})
        response = request.get_response(self.application)
        described.check(request, response)
        return response

    def get(self, path: str, **more: Any) -> webob.Response:
        return self.call('GET', path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> webob.Response:
        return self.call('POST', path, body, **more)

    def saved_requests(self) -> int:
        with self.database.reader() as reader:
            return reader.query(models.CacheRequest).count()


def make_conf(path: pathlib.Path) -> cfg.ConfigOpts:
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('connection', f'sqlite:///{path}', 'database')
    return conf


@pytest.fixture(scope='session')
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A file with the current schema, to be copied: the migrations run once."""
    path = tmp_path_factory.mktemp('database') / 'empty.sqlite'
    made = session.connect(make_conf(path))
    schema.sync(made)
    made.dispose()
    return path


@pytest.fixture
def conf(tmp_path: pathlib.Path) -> cfg.ConfigOpts:
    return make_conf(tmp_path / 'precache.sqlite')


@pytest.fixture
def database(
    conf: cfg.ConfigOpts, tmp_path: pathlib.Path, empty_database: pathlib.Path
) -> Iterator[session.Database]:
    shutil.copy(empty_database, tmp_path / 'precache.sqlite')
    made = session.connect(conf)
    yield made
    made.dispose()


@pytest.fixture
def api(conf: cfg.ConfigOpts, database: session.Database) -> Api:
    """The API with one cell and three hosts, and no aggregate."""
    stock = inventory.Inventory(database)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host in HOSTS:
        stock.map_host(host, cell.uuid)
    return make_api(conf, database, stock)


@pytest.fixture
def aggregate(api: Api) -> model.Aggregate:
    """An aggregate with two hosts."""
    made = api.inventory.create_aggregate('edge')
    api.inventory.add_host(made.id, 'host1')
    return api.inventory.add_host(made.id, 'host2')


@pytest.fixture
def rebuild(conf: cfg.ConfigOpts, database: session.Database) -> Callable[..., Api]:
    """Return a function that builds the API again, after options were changed."""

    def build(stock: inventory.Inventory | None = None, **services: Any) -> Api:
        return make_api(conf, database, stock or inventory.Inventory(database), **services)

    return build


def make_api(
    conf: cfg.ConfigOpts,
    database: session.Database,
    stock: inventory.Inventory,
    **replaced: Any,
) -> Api:
    images = fake.FakeImageService()
    store = requests.Requests(database, limits_of(conf))
    wakes: list[None] = []
    services = app.Services(
        inventory=stock,
        requests=store,
        actions=request_actions.RequestActions(database),
        agents=agents.Agents(database, conf.service_down_time),
        caches=caches.Caches(database),
        pins=pins.Pins(database),
        explanations=common.explanation_store(conf, database, names.CellNames(stock)),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        services=db_services.Services(database, conf.service_down_time, conf.report_interval),
        hearings=hearing.Hearings(database),
        cell_names=names.CellNames(stock),
        count_hosts=statistics.Statistics(database, conf.service_down_time).hosts,
        images_for=lambda context: images,
        wake=lambda: wakes.append(None),
        why_unsupported=lambda: None,
        remove=lambda ctxt, host, image_id: model.ImageRemoval('removed', freed_bytes=2048),
        enforcer=policy.Enforcer(conf),
    )
    services = dataclasses.replace(services, **replaced)
    return Api(app.build(conf, services), conf, database, stock, store, images, wakes)


def limits_of(conf: cfg.ConfigOpts) -> requests.RequestLimits:
    names = [field.name for field in dataclasses.fields(requests.RequestLimits)]
    return requests.RequestLimits(**{name: conf.image_cache[name] for name in names})
