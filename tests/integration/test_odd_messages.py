# SPDX-License-Identifier: Apache-2.0
"""Whatever is published on the broker of a cell, its other hosts are served and heard."""

import json
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import kombu
import pytest

from nova_precache import conf as options, context, exception, model, rpc
from nova_precache.conductor import manager, report_buffer, rpcapi
from nova_precache.db import caches
from nova_precache.db.engine import schema
from tests.unit import odd
from tests.unit.conftest import World, open_database, open_world
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.integration

CTXT = context.admin_context()
STATE: model.Json = {'host': 'h1', 'agent_id': 'agent-1', 'version': '1'}


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Iterator[World]:
    database = open_database(tmp_path / 'precache.sqlite')
    schema.sync(database)
    yield open_world(database)
    database.dispose()


@pytest.fixture
def url(rabbitmq: RabbitMQ) -> str:
    return rabbitmq.make_vhost()


@pytest.fixture
def reports(world: World, url: str) -> Iterator[report_buffer.ReportBuffer]:
    """The report buffer of a conductor that serves the broker."""
    gathered = report_buffer.ReportBuffer(world.agents, world.jobs, caches.Caches(world.database))
    endpoint = manager.CellEndpoint(
        world.cell.uuid, world.inventory, world.agents, world.jobs, gathered, lambda: None
    )
    server = rpc.Server(
        rpc.connect(options.new(config_files=[]), url), rpcapi.TOPIC, 'conductor', [endpoint]
    )
    server.start()
    yield gathered
    server.stop()


def _publish(url: str, bodies: list[Any]) -> None:
    """Publish as a compromised host can: without any client."""
    with kombu.Connection(url.replace('rabbit://', 'amqp://')) as connection:
        producer = connection.Producer()
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            producer.publish(
                text,
                exchange=options.EXCHANGE,
                routing_key=rpcapi.TOPIC,
                content_type='application/json',
                content_encoding='utf-8',
            )


def _message(method: Any, arguments: Any, **more: Any) -> dict[str, str]:
    message = {'method': method, 'args': arguments, 'version': '1.0', **more}
    return {'oslo.version': '2.0', 'oslo.message': json.dumps(message)}


def test_odd_messages_do_not_block_others(
    world: World, reports: report_buffer.ReportBuffer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = rpcapi.ConductorReporter(
        rpc.connect(options.new(config_files=[]), url), None, TIMEOUT_SECONDS
    )
    good.register(STATE)
    world.dead('h1')
    states = [
        {**STATE, 'host': 'h2', field: value}
        for field, values in odd.STATE.items()
        for value in values
        if _is_json(value)
    ]

    _publish(
        url,
        [
            *(_message('report_state', {'state': state}) for state in states),
            _message('report_state', ['h1']),
            _message(['report_state'], {}),
            _message('report_state', {}, version=7),
            _message('report_state', {}, _timeout='long'),
            _message('no_such_method', {}, _timeout=5),
            _message('register', {'state': STATE}, _context_roles=5, _context_request_id=['x']),
        ],
    )
    good.report_state({**STATE, 'free_bytes': 5})
    world.wait(lambda: _heard(world, reports))
    with pytest.raises(exception.AgentConflict) as conflict:
        good.register({**STATE, 'agent_id': 'agent-2'})
    with pytest.raises(exception.InvalidInput, match=r'^state\.host: ') as refused:
        good.register({**STATE, 'host': '../../evil\n\x1b[31m'})

    assert 'Traceback' not in str(conflict.value) + str(refused.value)
    assert [agent.host for agent in world.agents.list()] == ['h1']
    ours = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert [each.getMessage() for each in ours if each.exc_info] == []
    named = [each.getMessage() for each in ours if "host 'h2'" in each.getMessage()]
    assert len(named) == 1
    assert all(each.getMessage().isprintable() for each in ours)


def _heard(world: World, reports: report_buffer.ReportBuffer) -> bool:
    reports.write_states()
    return world.agents.get(['h1'])['h1'].free_bytes == 5


def _is_json(value: object) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
