# SPDX-License-Identifier: Apache-2.0
"""A driver for RabbitMQ with two connections and two queues, for the agents of thousands of hosts.

oslo.messaging's own takes a connection to receive calls, one to receive answers, and a pool that
keeps two to send. It declares three queues for a server: its own, one of all servers of the topic
and one of the topic's fanout, though no message is ever sent to the last two.

Here the server and the answers share a connection, on which only one thread reads at a time, and
the queues of a server are its own and that of the answers. The pool keeps one connection to send.
If that is busy for long, such as with a broker that is away, it opens others, and closes them
some time later. It can serve calls and answers: a connection that is reconnected gives up soon, so
that its next user does not wait for a broker that is away.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from oslo_messaging._drivers import amqpdriver, base, common, impl_rabbit, pool

LOG = logging.getLogger(__name__)

# How long a thread reads before others get their turn: to declare a queue, or to stop.
TURN_SECONDS = 1.0
# How long a sender waits for a connection that is busy before it opens another.
BUSY_SECONDS = 1.0
# How long a connection to send is kept that is not used.
UNUSED_SECONDS = 60.0

Message = Callable[[Any], None]


class SharedConnectionDriver(impl_rabbit.RabbitDriver):  # type: ignore[misc]
    """The RabbitMQ driver, with a shared connection to receive."""

    _connection_pool: Any

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._connection_pool = _Pool(self._connection_pool)

    def listen(self, target: Any, batch_size: int, batch_timeout: float | None) -> Any:
        connection = self._get_connection(common.PURPOSE_LISTEN)
        listener = amqpdriver.RpcAMQPListener(self, connection)
        connection.declare_topic_consumer(
            exchange_name=self._get_exchange(target),
            topic=f'{target.topic}.{target.server}',
            callback=listener,
        )
        return base.PollStyleListenerAdapter(listener, batch_size, batch_timeout)


class _Pool(pool.ConnectionPool):  # type: ignore[misc]
    """Hands out the shared connection to receive, and pooled ones to send.

    :param usual: the pool that the driver made, for its settings
    """

    def __init__(self, usual: Any) -> None:
        super().__init__(
            usual.conf,
            usual._max_size,
            min_size=0,
            ttl=UNUSED_SECONDS,
            url=usual.url,
            connection_cls=usual.connection_cls,
        )
        self._shared = SharedConnection(
            lambda: super(_Pool, self).create(purpose=common.PURPOSE_LISTEN)
        )

    def get(self, retry: int | None = None) -> Any:
        with self._cond:
            self._cond.wait_for(lambda: self._items or not self._current_size, BUSY_SECONDS)
        return super().get(retry)

    def create(self, purpose: str = common.PURPOSE_SEND, retry: int | None = None) -> Any:
        if purpose == common.PURPOSE_LISTEN:
            return Receiver(self._shared)
        connection = super().create(purpose, retry)
        if retry is None:
            connection.max_retries = max(0, len(self.url.hosts) - 1)
        return connection


class SharedConnection:
    """A connection on which several receivers have consumers; one thread uses it at a time.

    :param connect: opens the connection, when a receiver first needs it
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._connection: Any = None
        self._consumers: dict[Receiver, list[Any]] = {}
        self._turns = threading.Condition()
        self._is_used = False
        self._urgent = 0

    def declare(self, receiver: 'Receiver', declare: Callable[[Any], None]) -> None:
        """Add consumers for a receiver, with a function of the connection."""
        with self._exclusively():
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            known = set(connection._consumers)
            if known:
                # On another channel: an error would end the consumers of others on this one, and
                # the driver would not begin them again.
                connection._set_current_channel(None)
            try:
                declare(connection)
            finally:
                connection._new_tags = set(connection._consumers.values())
            added = [each for each in connection._consumers if each not in known]
            self._consumers.setdefault(receiver, []).extend(added)

    def consume(self, receiver: 'Receiver', seconds: float | None) -> None:
        """Return when the receiver has received a message, or is stopped.

        :raises oslo_messaging._drivers.common.Timeout: neither happened in time
        """
        with self._turns:
            can_read = self._turns.wait_for(
                lambda: receiver.is_ready or not (self._is_used or self._urgent), seconds
            )
            if receiver.is_ready:
                receiver.has_received = False
                return
            if not can_read:
                raise common.Timeout
            self._is_used = True
        try:
            turn = TURN_SECONDS if seconds is None else min(seconds, TURN_SECONDS)
            self._connection.consume(timeout=turn)
        finally:
            with self._turns:
                receiver.has_received = False
                self._is_used = False
                self._turns.notify_all()

    def received(self, receiver: 'Receiver') -> None:
        """Wake the thread of a receiver, whose message another thread may have read."""
        with self._turns:
            receiver.has_received = True
            self._turns.notify_all()

    def stop(self, receiver: 'Receiver') -> None:
        """Make ``consume`` return at once from now on, and cancel the consumers of a receiver.

        The connection is still read for others, so they would take its messages.
        """
        with self._turns:
            receiver.is_stopped = True
            self._turns.notify_all()
        with self._exclusively():
            self._cancel_all(receiver)

    def leave(self, receiver: 'Receiver') -> None:
        """Cancel the consumers of a receiver, and close the connection after the last one."""
        if receiver not in self._consumers:
            return  # a finalizer leaves, maybe in the thread that reads: its queue was refused
        with self._exclusively():
            self._cancel_all(receiver)
            if self._consumers.pop(receiver, None) is None or self._consumers:
                return
            connection, self._connection = self._connection, None
            connection.close()

    def _cancel_all(self, receiver: 'Receiver') -> None:
        consumers = self._consumers.get(receiver, [])
        while consumers:
            self._cancel(consumers.pop())

    def _cancel(self, consumer: Any) -> None:
        connection = self._connection
        # Without it, a connection that is lost is not reconnected with this consumer.
        tag = connection._consumers.pop(consumer)
        connection._active_tags.pop(consumer.queue_name, None)
        connection._new_tags.discard(tag)
        kombu = connection.connection
        try:
            consumer.cancel(tag)
        except kombu.recoverable_connection_errors as exc:
            # The broker has dropped the consumer; the next use of the connection reconnects.
            LOG.debug('Queue %s is left on a lost connection: %s', consumer.queue_name, exc)
        except kombu.channel_errors as exc:
            LOG.warning(
                'Receiving on another channel: leaving queue %s failed: %s',
                consumer.queue_name,
                exc,
            )
            # The broker has closed the channel, and so ended all consumers.
            connection._set_current_channel(None)
            connection._new_tags = set(connection._consumers.values())

    @contextlib.contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Use the connection as the only thread, before those that wait to read."""
        with self._turns:
            self._urgent += 1
            self._turns.wait_for(lambda: not self._is_used)
            self._urgent -= 1
            self._is_used = True
        try:
            yield
        finally:
            with self._turns:
                self._is_used = False
                self._turns.notify_all()


class Receiver:
    """For oslo.messaging a connection of its own; receives on the shared one."""

    def __init__(self, shared: SharedConnection) -> None:
        self._shared = shared
        self.has_received = self.is_stopped = False

    @property
    def is_ready(self) -> bool:
        return self.has_received or self.is_stopped

    def declare_direct_consumer(self, topic: str, callback: Message) -> None:
        taking = self._taking(callback)
        self._shared.declare(self, lambda used: used.declare_direct_consumer(topic, taking))

    def declare_topic_consumer(self, exchange_name: str, topic: str, callback: Message) -> None:
        taking = self._taking(callback)
        self._shared.declare(
            self, lambda used: used.declare_topic_consumer(exchange_name, topic, taking)
        )

    def consume(self, timeout: float | None = None) -> None:
        self._shared.consume(self, timeout)

    def stop_consuming(self) -> None:
        self._shared.stop(self)

    def close(self) -> None:
        self._shared.leave(self)

    def _taking(self, callback: Message) -> Message:
        def take(message: Any) -> None:
            if self.is_stopped:
                message.requeue()
                return
            callback(message)
            self._shared.received(self)

        return take
