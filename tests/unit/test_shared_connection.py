# SPDX-License-Identifier: Apache-2.0
"""Several threads receive on one connection, which only one of them uses at a time."""

import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import pytest
from oslo_messaging._drivers import common

from nova_precache import conf as options, rpc
from nova_precache.rpc import shared_connection
from tools.waiting import TIMEOUT_SECONDS


class Broken(Exception):
    """An error of a broker that is gone."""


class Closed(Exception):
    """An error of a channel that the broker has closed."""


class Consumer:
    """A consumer on a connection, as the driver keeps it."""

    def __init__(
        self, name: str, callback: Callable[[Any], None], error: type[Exception] | None
    ) -> None:
        self.queue_name = name
        self.callback = callback
        self.is_cancelled = False
        self._error = error

    def cancel(self, tag: int) -> None:
        if self._error is not None:
            raise self._error('it is gone')
        self.is_cancelled = True


class Connection:
    """Delivers what a test puts into queues, and fails if two threads use it."""

    recoverable_connection_errors = (Broken,)
    channel_errors = (Closed,)

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.connection = self
        self.is_closed = False
        self.channels = 1
        self.reading = threading.Event()
        self._error = error
        self._consumers: dict[Consumer, int] = {}
        self._active_tags: dict[str, int] = {}
        self._new_tags: set[int] = set()
        self._arrived: queue.Queue[tuple[str, str]] = queue.Queue()
        self._used = threading.Lock()

    def declare_direct_consumer(self, topic: str, callback: Callable[[Any], None]) -> None:
        with self._use():
            tag = len(self._active_tags) + 1
            self._consumers[Consumer(topic, callback, self._error)] = tag
            self._active_tags[topic] = tag

    def _set_current_channel(self, channel: None) -> None:
        self.channels += 1

    def deliver(self, topic: str, message: str) -> None:
        self._arrived.put((topic, message))

    def consume(self, timeout: float) -> None:
        with self._use():
            self.reading.set()
            try:
                topic, message = self._arrived.get(timeout=timeout)
            except queue.Empty:
                raise common.Timeout from None
            for consumer in self._consumers:
                if consumer.queue_name == topic:
                    consumer.callback(message)

    def close(self) -> None:
        self.is_closed = True

    @property
    def consumers(self) -> list[Consumer]:
        return list(self._consumers)

    def _use(self) -> threading.Lock:
        assert not self._used.locked(), 'two threads use the connection'
        return self._used


class Returned:
    """A message that records whether it went back to its queue."""

    def __init__(self, returned: list[str]) -> None:
        self._returned = returned

    def requeue(self) -> None:
        self._returned.append('returned')


class Client:
    """A receiver with one queue, and the messages it has received."""

    def __init__(self, shared: shared_connection.SharedConnection, topic: str) -> None:
        self.receiver = shared_connection.Receiver(shared)
        self.received: list[str] = []
        self.receiver.declare_direct_consumer(topic, self.received.append)

    def read(self, seconds: float = TIMEOUT_SECONDS) -> list[str]:
        """Receive for a while, or until there is a message."""
        with contextlib.suppress(common.Timeout):
            self.receiver.consume(seconds)
        return self.received


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def shared(connection: Connection) -> shared_connection.SharedConnection:
    return shared_connection.SharedConnection(lambda: connection)


@pytest.fixture
def clients(shared: shared_connection.SharedConnection) -> tuple[Client, Client]:
    return Client(shared, 'calls'), Client(shared, 'answers')


@pytest.fixture
def long_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that only a message ends within the time of a test."""
    monkeypatch.setattr(shared_connection, 'TURN_SECONDS', 2 * TIMEOUT_SECONDS)


@pytest.mark.usefixtures('long_turns')
def test_message_read_by_other_thread_arrives(
    clients: tuple[Client, Client], connection: Connection
) -> None:
    reading, waiting = clients
    with futures.ThreadPoolExecutor(2) as pool:
        read = pool.submit(reading.read)
        assert connection.reading.wait(TIMEOUT_SECONDS)
        waited = pool.submit(waiting.read)
        connection.deliver('answers', 'for the other')

        assert waited.result(TIMEOUT_SECONDS) == ['for the other']
        connection.deliver('calls', 'own')
        while not read.result(TIMEOUT_SECONDS):
            read = pool.submit(reading.read)
        assert read.result(TIMEOUT_SECONDS) == ['own']


def test_message_before_wait_is_noticed(
    clients: tuple[Client, Client], connection: Connection
) -> None:
    reading, late = clients
    connection.deliver('answers', 'early')
    reading.read()

    late.receiver.consume(0)

    assert late.received == ['early']


def test_silent_connection_times_out(clients: tuple[Client, Client]) -> None:
    with pytest.raises(common.Timeout):
        clients[0].receiver.consume(0.01)


def test_queue_declared_while_thread_reads(
    shared: shared_connection.SharedConnection,
    clients: tuple[Client, Client],
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_connection, 'TURN_SECONDS', 0.01)
    stopped = threading.Event()

    def read() -> None:
        while not stopped.is_set():
            clients[0].read()

    with futures.ThreadPoolExecutor(1) as pool:
        pool.submit(read)
        assert connection.reading.wait(TIMEOUT_SECONDS)
        Client(shared, 'more')
        stopped.set()
        connection.deliver('calls', 'the last')

    assert [each.queue_name for each in connection.consumers] == ['calls', 'answers', 'more']


@pytest.mark.usefixtures('long_turns')
def test_stopped_receiver_stops_waiting(
    clients: tuple[Client, Client], connection: Connection
) -> None:
    reading, waiting = clients
    with futures.ThreadPoolExecutor(3) as pool:
        pool.submit(reading.read)
        assert connection.reading.wait(TIMEOUT_SECONDS)
        waited = pool.submit(waiting.read)
        stopped = pool.submit(waiting.receiver.stop_consuming)

        assert waited.result(TIMEOUT_SECONDS) == []
        connection.deliver('calls', 'ends the turn of the other')
        stopped.result(TIMEOUT_SECONDS)


def test_stopped_receiver_takes_no_message(
    clients: tuple[Client, Client], connection: Connection
) -> None:
    stopped, other = clients
    consumer = connection.consumers[0]
    returned: list[str] = []

    stopped.receiver.stop_consuming()
    consumer.callback(Returned(returned))  # it was on its way

    assert (stopped.received, returned) == ([], ['returned'])
    assert (consumer.is_cancelled, connection.consumers) == (True, connection.consumers[-1:])
    connection.deliver('answers', 'arrives')
    assert other.read() == ['arrives']


@pytest.mark.parametrize('error', [None, Broken, Closed], ids=['connected', 'lost', 'closed'])
def test_left_receiver_keeps_others(
    error: type[Exception] | None, caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(error)
    shared = shared_connection.SharedConnection(lambda: connection)
    leaving, staying = Client(shared, 'calls'), Client(shared, 'answers')
    left, stayed = connection.consumers
    connection._new_tags.clear()  # all were begun
    channels = connection.channels

    leaving.receiver.close()

    assert left.is_cancelled is (error is None)
    begun_again = {connection._consumers[stayed]} if error is Closed else set()
    assert connection._new_tags == begun_again, 'the closed channel was that of all'
    assert connection.channels - channels == len(begun_again)
    assert caplog.messages == [
        f'Receiving on another channel: leaving queue {each} failed: it is gone'
        for each in ['calls'] * len(begun_again)
    ]
    assert [each.queue_name for each in connection.consumers] == ['answers']
    assert connection._active_tags.keys() == {'answers'}
    connection.deliver('answers', 'arrives')
    assert (staying.read(), connection.is_closed) == (['arrives'], False)


def test_last_receiver_closes_connection(
    shared: shared_connection.SharedConnection,
    clients: tuple[Client, Client],
    connection: Connection,
) -> None:
    for each in clients:
        each.receiver.close()

    assert connection.is_closed
    Client(shared, 'again')  # connects again
    assert connection.consumers[-1].queue_name == 'again'


def test_refused_receiver_closes_while_thread_reads(
    shared: shared_connection.SharedConnection, connection: Connection
) -> None:
    refused = shared_connection.Receiver(shared)
    reading = shared_connection.Receiver(shared)
    # As the collector may call the finalizer of its context, in any thread.
    reading.declare_direct_consumer('calls', lambda message: refused.close())
    connection.deliver('calls', 'collects')

    thread = threading.Thread(target=reading.consume, args=(TIMEOUT_SECONDS,), daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)

    assert not thread.is_alive()


class Sending:
    """A connection that sends, as the pool opens it."""

    def __init__(self, conf: object, url: object, purpose: str, retry: int | None) -> None:
        self.max_retries = retry
        self.is_closed = False

    def reset(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The pool of an agent, for a broker with two hosts."""
    transport = rpc.connect(
        options.new(config_files=[]), 'rabbit://one,rabbit2/', shares_connections=True
    )
    found = transport.calling._driver._connection_pool
    monkeypatch.setattr(found, 'connection_cls', Sending)
    return found


def test_agent_sends_on_one_connection(pool: Any) -> None:
    used: list[Sending] = []

    def send() -> None:
        connection = pool.get()
        used.append(connection)
        pool.put(connection)

    with futures.ThreadPoolExecutor(8) as threads:
        for sent in [threads.submit(send) for _ in range(50)]:
            sent.result(TIMEOUT_SECONDS)

    assert len(used) == 50
    assert len(set(used)) == 1


def test_busy_connection_delays_no_sender(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, 'BUSY_SECONDS', 0.01)
    busy = pool.get()

    assert pool.get() is not busy


def test_unused_connection_closed(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_connection, 'BUSY_SECONDS', 0.01)
    monkeypatch.setattr(pool, '_item_ttl', 0)
    unused, used = pool.get(), pool.get()
    for each in (unused, used):
        pool.put(each)

    assert pool.get() is used
    assert (unused.is_closed, used.is_closed) == (True, False)


@pytest.mark.parametrize(('retries', 'tried_again'), [(None, 1), (0, 0), (3, 3)])
def test_reconnecting_gives_up_soon(pool: Any, retries: int | None, tried_again: int) -> None:
    assert pool.get(retries).max_retries == tried_again


def test_agent_closes_connections_once(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Semaphore(0)
    transport = rpc.connect(
        options.new(config_files=[]), 'rabbit://nowhere/', shares_connections=True
    )
    monkeypatch.setattr(transport.calling, 'cleanup', closed.release)

    transport.retire()

    assert transport.calling is transport.serving
    assert closed.acquire(timeout=TIMEOUT_SECONDS)
    assert not closed.acquire(blocking=False)


def test_broker_in_memory_shares_nothing() -> None:
    transport = rpc.connect(options.new(config_files=[]), 'fake:///a', shares_connections=True)

    assert transport.calling._driver is not transport.serving._driver
