# SPDX-License-Identifier: Apache-2.0
"""Schemathesis against the API behind its own HTTP server: it matches its document.

The image service has every image, so that most requests are accepted; no conductor runs,
so that only the calls change state.
"""

import collections
import datetime
import hashlib
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests as http

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
from nova_precache.wiring import common
from nova_precache.wsgi import server
from tools.waiting import TIMEOUT_SECONDS

LEAST_CALLS = 2000
HOSTS = ('host1', 'host2', 'host3')
TOKEN = 'user:p1:admin'
IMAGE = '5b1f6a3e-6f5c-4b53-9d0c-2f1d8c7e0a01'

# Existing objects are queried often. An ended pin stays, to show why it ended, so that
# using it after its deletion is no error. Where the schema omits a condition (a time has
# passed, one of aggregate and hosts is required), valid input may be refused.
SETTINGS = f"""
request-timeout = {TIMEOUT_SECONDS}

[auth.openapi.token]
api_key = "{TOKEN}"

[generation]
max-examples = 75
deterministic = true
database = "none"

[phases.coverage]
unexpected-methods = ["GET", "PUT", "POST", "DELETE", "PATCH"]

[phases.stateful]
max-steps = 6
generation.max-examples = 30

[checks]
use_after_free.enabled = false

[dictionaries]
aggregates = {{values = ["edge", "1"]}}
hosts = {{values = ["host1", "host2"]}}
images = {{values = ["{IMAGE}"]}}

[parameters]
"body.request.aggregate" = {{dictionary = "aggregates", probability = 0.7}}
"body.pin.aggregate" = {{dictionary = "aggregates", probability = 0.7}}
"path.host" = {{dictionary = "hosts", probability = 0.7}}

[[operations]]
include-operation-id = [
    "createRequest", "listRequests", "actOnRequest", "estimateRequest", "createPin", "listPins",
    "changeRequest", "listTasks", "listAllTasks", "listHosts", "listHostImages", "listImageHosts",
    "listServices",
]
checks.positive_data_acceptance.enabled = false
"""

Application = Callable[..., Any]


class AnyImage:
    """An image service that has every image it is asked for."""

    def show(self, image_id: str) -> model.Image:
        return model.Image(id=image_id, size=10, virtual_size=20)


class Counted:
    """Counts the answers of an application by method, path and status.

    It accepts one token only: noauth2 would accept any.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self.answers: collections.Counter[tuple[str, str, int]] = collections.Counter()

    def __call__(self, environ: dict[str, Any], start_response: Application) -> Any:
        def count(status: str, *more: Any) -> Any:
            path = re.sub(r'^/v1/(\w+)/[^/]+', r'/v1/\1/{}', environ['PATH_INFO'])
            path = re.sub(r'^/v1/hosts/{}/images/[^/]+', '/v1/hosts/{}/images/{}', path)
            self.answers[environ['REQUEST_METHOD'], path, int(status[:3])] += 1
            return start_response(status, *more)

        is_open = environ['PATH_INFO'] == '/v1/openapi.json'
        if is_open or environ.get('HTTP_X_AUTH_TOKEN') == TOKEN:
            return self._application(environ, count)
        headers = [('Content-Type', 'application/json'), ('X-OpenStack-Request-Id', 'req-1')]
        count('401 Unauthorized', headers)
        return [b'{"error": {"code": 401, "message": "Who are you?"}}']


@pytest.fixture
def counted(tmp_path: pathlib.Path) -> Iterator[Counted]:
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('connection', f'sqlite:///{tmp_path}/precache.sqlite', 'database')
    conf.set_override('service_down_time', 3600)  # no host reports during the calls
    database = session.connect(conf)
    schema.sync(database)
    cells = names.CellNames(inventory.Inventory(database))
    services = app.Services(
        inventory=inventory.Inventory(database),
        requests=requests.Requests(database, requests.RequestLimits(32, 1000, 10_000)),
        actions=request_actions.RequestActions(database),
        agents=agents.Agents(database, conf.service_down_time),
        caches=caches.Caches(database),
        pins=pins.Pins(database),
        explanations=common.explanation_store(conf, database, cells),
        rates=jobs.Jobs(database, conf.conductor.claim_lease_seconds),
        services=common.service_store(conf, database),
        hearings=hearing.Hearings(database),
        cell_names=cells,
        count_hosts=statistics.Statistics(database, conf.service_down_time).hosts,
        images_for=lambda context: AnyImage(),  # type: ignore[return-value]
        wake=lambda: None,
        why_unsupported=lambda: None,
        remove=lambda ctxt, host, image_id: model.ImageRemoval('removed', freed_bytes=2048),
        enforcer=policy.Enforcer(conf),
    )
    _populate(services, database)
    yield Counted(app.build(conf, services))
    database.dispose()


def _populate(services: Any, database: session.Database) -> None:
    """Make an aggregate of hosts that report an image in their caches."""
    stock = services.inventory
    cell = stock.create_cell('cell1', 'fake:///cell1')
    edge = stock.create_aggregate('edge')
    name = hashlib.sha1(IMAGE.encode()).hexdigest()  # noqa: S324
    touched_at = datetime.datetime(2026, 1, 1)  # noqa: DTZ001 - as the database keeps it
    for host in HOSTS:
        stock.map_host(host, cell.uuid)
        stock.add_host(edge.id, host)
        agents.Agents(database, 60).register(model.Agent(host, f'agent-{host}', cell.uuid))
        cached = model.CachedImage(host, name, None, 10, 10, touched_at)
        services.caches.record([caches.Report(host, [cached], full=True)])
    for _ in range(3):
        new = requests.NewRequest(aggregate=edge, images=(IMAGE,))
        services.requests.accept(new)
        services.pins.create(pins.NewPin(edge, (IMAGE,)))


@pytest.fixture
def url(counted: Counted) -> Iterator[str]:
    running = server.HttpServer(counted, '127.0.0.1', 0, threads=2)
    running.start()
    yield f'http://127.0.0.1:{running.port}'
    running.stop()


def test_service_matches_its_document(url: str, counted: Counted, tmp_path: pathlib.Path) -> None:
    settings = tmp_path / 'schemathesis.toml'
    settings.write_text(SETTINGS)
    run = subprocess.run(
        [
            sys.executable, '-m', 'schemathesis.cli', '--config-file', str(settings),
            'run', f'{url}/v1/openapi.json', '--workers', '1', '--no-color', '--warnings', 'off',
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip

    failed = {key for key in counted.answers if key[2] >= 500}
    assert failed == set(), run.stdout
    assert run.returncode == 0, run.stdout + run.stderr
    assert sum(counted.answers.values()) >= LEAST_CALLS
    described = http.get(f'{url}/v1/openapi.json', timeout=TIMEOUT_SECONDS).json()['paths']
    successes = {
        (method.upper(), re.sub(r'\{\w+\}', '{}', path), int(next(iter(operation['responses']))))
        for path, methods in described.items()
        for method, operation in methods.items()
    }
    # Otherwise the calls would only show that bad ones are refused.
    assert successes <= counted.answers.keys()
