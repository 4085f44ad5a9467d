# SPDX-License-Identifier: Apache-2.0
"""An idle agent and an idle conductor take little, of their machines and of a RabbitMQ."""

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator

import pytest

from benchmarks import idle
from nova_precache import conf as options, context, exception, rpc
from nova_precache.conductor import rpcapi
from tests.integration.link import Link
from tools.servers.rabbitmq import RabbitMQ
from tools.waiting import TIMEOUT_SECONDS, wait_until

TOPIC = 'precache_test'
CTXT = context.admin_context()
REPORT_SECONDS = 0.1


class Endpoint(rpc.Endpoint):
    """Answers what it is asked."""

    def echo(self, ctxt: context.RequestContext, what: str) -> str:
        return what


@pytest.fixture(scope='module')
def site(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[idle.Site]:
    """A conductor and an agent that has reported often enough for each of its threads to work."""
    directory = tmp_path_factory.mktemp('idle')
    with idle.Site(directory, rabbitmq, REPORT_SECONDS) as started:
        seen: set[str] = set()

        def has_reported() -> bool:
            with contextlib.closing(sqlite3.connect(directory / 'precache.sqlite')) as database:
                seen.update(at for (at,) in database.execute('SELECT seen_at FROM agents'))
            return len(seen) > 2

        wait_until(has_reported, 'the agent has reported')
        yield started


def test_idle_agent_takes_two_connections(site: idle.Site) -> None:
    def takes_two() -> bool:  # one that was opened since another was busy is closed later
        return site.measure(idle.AGENT).connections <= 2

    wait_until(takes_two, 'the agent has two connections')
    agent = site.measure(idle.AGENT)

    assert agent.threads <= 12
    assert agent.resident_bytes <= 64 * 1024**2


def test_idle_conductor_has_few_threads(site: idle.Site) -> None:
    assert site.measure(idle.CONDUCTOR).threads <= 48


def test_agent_declares_no_unused_queue(site: idle.Site) -> None:
    of_conductors = (rpcapi.TOPIC, rpcapi.REPORTS_TOPIC)

    def queues() -> list[str]:
        return [each for each in site.queues_of_cell() if not each.startswith(of_conductors)]

    wait_until(lambda: queues().count('reply_…') == 2, 'the conductor has called')
    assert queues() == [
        f'precache_compute.{idle.AGENT}',
        'reply_…',
        'reply_…',  # for the answers to the conductor's calls
    ]


@pytest.fixture
def link(rabbitmq: RabbitMQ, free_port: Callable[[], int]) -> Iterator[Link]:
    with Link(free_port(), rabbitmq.port) as opened:
        yield opened


@pytest.fixture
def url(rabbitmq: RabbitMQ, link: Link) -> str:
    """Return the URL of an empty virtual host behind the link."""
    return rabbitmq.make_vhost().replace(f':{rabbitmq.port}/', f':{link.port}/')


def _connect(url: str, *, shares_connections: bool) -> rpc.Transport:
    conf = options.new(config_files=[])
    conf.set_override('transport_url', url)
    return rpc.connect(conf, shares_connections=shares_connections)


def _ask(
    transport: rpc.Transport, server: str, what: str, timeout_seconds: float = TIMEOUT_SECONDS
) -> object:
    client = rpc.Client(transport, TOPIC, retries=0)
    return client.call(
        CTXT, 'echo', '1.0', server=server, timeout_seconds=timeout_seconds, what=what
    )


def _answers(transport: rpc.Transport, server: str) -> bool:
    try:
        return _ask(transport, server, 'again', timeout_seconds=10) == 'again'
    except (TimeoutError, exception.PrecacheError):
        return False


@pytest.fixture
def pair(url: str) -> Iterator[tuple[rpc.Transport, rpc.Transport]]:
    """A transport that shares its connection, which serves ``a``, and a usual one, with ``b``."""
    sharing = _connect(url, shares_connections=True)
    usual = _connect(url, shares_connections=False)
    servers = [
        rpc.Server(usual, TOPIC, 'b', [Endpoint()]),
        rpc.Server(sharing, TOPIC, 'a', [Endpoint()]),
    ]
    servers[0].start()
    assert _ask(sharing, 'b', 'before it serves') == 'before it serves'
    servers[1].start()
    yield sharing, usual
    for server in servers:
        server.stop()
    for transport in (sharing, usual):
        transport.retire()


def test_calls_and_answers_share_connection(pair: tuple[rpc.Transport, rpc.Transport]) -> None:
    sharing, usual = pair

    assert [_ask(usual, 'a', 'in'), _ask(sharing, 'b', 'out')] == ['in', 'out']


def test_stopped_server_leaves_answers(url: str) -> None:
    sharing = _connect(url, shares_connections=True)
    usual = _connect(url, shares_connections=False)
    other = rpc.Server(usual, TOPIC, 'b', [Endpoint()])
    other.start()
    for _ in range(2):  # an agent that lost its name serves again later
        server = rpc.Server(sharing, TOPIC, 'a', [Endpoint()])
        server.start()
        assert _ask(usual, 'a', 'in') == 'in'

        server.stop()

        assert _ask(sharing, 'b', 'out') == 'out'
    other.stop()
    for transport in (sharing, usual):
        transport.retire()


def test_shared_connection_survives_broker(
    pair: tuple[rpc.Transport, rpc.Transport], link: Link
) -> None:
    sharing, usual = pair

    link.cut()
    with pytest.raises(exception.CellUnreachable):
        _ask(sharing, 'b', 'lost')
    link.restore()

    wait_until(lambda: _answers(usual, 'a'), 'the server of the shared connection answers')
    wait_until(lambda: _answers(sharing, 'b'), 'the shared connection receives answers')


def test_queue_declared_on_lost_connection(
    pair: tuple[rpc.Transport, rpc.Transport], link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    sharing, usual = pair
    connection = sharing.serving._driver._connection_pool._shared._connection
    declare = connection.declare_topic_consumer

    def lose_and_declare(*arguments: object, **named: object) -> None:
        link.cut()
        threading.Timer(0.5, link.restore).start()
        declare(*arguments, **named)

    monkeypatch.setattr(connection, 'declare_topic_consumer', lose_and_declare)
    server = rpc.Server(sharing, TOPIC, 'c', [Endpoint()])
    server.start()

    wait_until(lambda: _answers(usual, 'c'), 'the new server answers')
    wait_until(lambda: _answers(usual, 'a'), 'the server before it answers')
    wait_until(lambda: _answers(sharing, 'b'), 'answers arrive')
    server.stop()


def test_closed_channel_leaves_answers(
    pair: tuple[rpc.Transport, rpc.Transport], caplog: pytest.LogCaptureFixture
) -> None:
    sharing, usual = pair
    server = rpc.Server(sharing, TOPIC, 'c', [Endpoint()])
    server.start()
    assert _ask(usual, 'c', 'in') == 'in'
    shared = sharing.serving._driver._connection_pool._shared
    [receiver] = [
        receiver
        for receiver, consumers in shared._consumers.items()
        if any(each.queue_name.endswith('.c') for each in consumers)
    ]

    with shared._exclusively():
        # The broker closes the channel for that, before it is asked to cancel the consumer.
        shared._connection.channel.basic_ack(2**40)
        shared._cancel_all(receiver)
    server.stop()

    assert 'leaving queue precache_test.c failed' in caplog.text
    assert [_ask(usual, 'a', 'in'), _ask(sharing, 'b', 'out')] == ['in', 'out']


def test_queue_of_other_durability_leaves_answers(url: str) -> None:
    usual = _connect(url, shares_connections=False)
    before = rpc.Server(usual, TOPIC, 'a', [Endpoint()])
    before.start()
    before.stop()  # its queue stays
    durable = options.new(config_files=[])
    durable.set_override('transport_url', url)
    sharing = rpc.connect(durable, shares_connections=True)
    durable.set_override('amqp_durable_queues', True, group='oslo_messaging_rabbit')
    servers = [
        rpc.Server(usual, TOPIC, 'b', [Endpoint()]),
        rpc.Server(sharing, TOPIC, 'a', [Endpoint()]),
    ]
    servers[0].start()
    assert _ask(sharing, 'b', 'before it serves') == 'before it serves'

    servers[1].start()  # the broker closes the channel, and the driver declares a queue as it is

    assert [_ask(usual, 'a', 'in'), _ask(sharing, 'b', 'out')] == ['in', 'out']
    for server in servers:
        server.stop()
    for transport in (sharing, usual):
        transport.retire()
