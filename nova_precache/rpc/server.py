# SPDX-License-Identifier: Apache-2.0
"""Serve endpoints, and refuse messages that are no call of one."""

import functools
import inspect
import logging
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import oslo_messaging as messaging
import tenacity
from oslo_messaging.rpc import server as rpc_server

from nova_precache import backend, concurrency, context, exception, wire
from nova_precache.rpc import errors, message as messages, transport as transports

LOG = logging.getLogger(__name__)

Method = TypeVar('Method', bound=Callable[..., Any])

START_PAUSE_SECONDS = 1.0
LONGEST_START_PAUSE_SECONDS = 60.0
_METHOD = re.compile('[a-z][a-z_]{0,63}')
_VERSION = re.compile(r'[0-9]{1,5}\.[0-9]{1,5}')
_MONITOR_MAX_SECONDS = 10**6


class Endpoint:
    """The base of endpoints: answers the probe that precedes a client's first call.

    The class of an endpoint declares the version that it serves.
    """

    target = messaging.Target(version='1.0')

    def __init_subclass__(cls, version: str = '1.0') -> None:
        cls.target = messaging.Target(version=version)

    def ping(self, ctxt: context.RequestContext, **unknown: Any) -> str:
        """Return the served version; most callers only test whether the message can be sent."""
        return str(self.target.version)


def refuses(*errors: type[Exception]) -> Callable[[Method], Method]:
    """Declare errors that a method of an endpoint may answer; they are not logged as failures."""
    return messaging.expected_exceptions(*errors)  # type: ignore[no-any-return]


class Server:
    """Serves endpoints on a topic, each call in its own thread.

    :param threads: largest number of calls at once; None: ``[DEFAULT] executor_thread_pool_size``
    """

    def __init__(
        self,
        transport: transports.Transport,
        topic: str,
        name: str,
        endpoints: Sequence[object],
        threads: int | None = None,
    ) -> None:
        self._transport = transport
        self._threads = threads
        self._new_server = functools.partial(
            _RPCServer,
            transport.serving,
            messaging.Target(exchange=transport.exchange, topic=topic, server=name),
            _Dispatcher(endpoints, transport.outage.name),
        )
        self._lock = threading.Lock()
        self._serving: Any = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start to serve; wait for the broker as long as needed, or until stopped.

        Failures are retried after growing pauses.
        """
        attempts = tenacity.Retrying(
            wait=tenacity.wait_exponential(START_PAUSE_SECONDS, max=LONGEST_START_PAUSE_SECONDS),
            sleep=tenacity.sleep_using_event(self._stopping),
            stop=tenacity.stop_when_event_set(self._stopping),
            before_sleep=self._log_failure,
            retry_error_callback=lambda state: None,  # stopped before it was started
        )
        attempts(self._try_to_start)

    def start_in_background(self) -> None:
        """Start to serve when the broker can be reached, without blocking the caller."""
        threading.Thread(target=self.start, name='rpc-server-start', daemon=True).start()

    def stop(self) -> None:
        """Stop taking messages and wait for the calls being served."""
        with self._lock:
            self._stopping.set()
            serving = self._serving
        if serving is not None:
            _close(serving)

    def _try_to_start(self) -> None:
        server = self._new_server()
        with self._transport.noted(), errors.translate_errors('an RPC server'):
            server.start(override_pool_size=self._threads)
        with self._lock:
            self._serving = server
            is_late = self._stopping.is_set()
        if is_late:
            _close(server)

    def _log_failure(self, state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        if error is not None:
            LOG.error('Starting an RPC server failed', exc_info=error)


class _RPCServer(rpc_server.RPCServer):  # type: ignore[misc]
    """Serves with as many threads as calls are in progress; oslo.messaging keeps its 64."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.executor_type == backend.Backend.THREADING:
            self._executor_cls = concurrency.ThreadPool


def _close(server: Any) -> None:
    server.stop()
    server.wait()


class _Dispatcher(messaging.RPCDispatcher):  # type: ignore[misc]
    """Refuses messages that are no call of an endpoint, as errors of the sender."""

    def __init__(self, endpoints: Sequence[object], broker: str) -> None:
        super().__init__(
            list(endpoints), messages.ContextSerializer(), messaging.DefaultRPCAccessPolicy
        )
        self._broker = broker
        self._senders = wire.Senders(LOG)

    def dispatch(self, incoming: Any) -> Any:
        try:
            method, version = _called(incoming)
            self._refuse_unknown(method, version)
            return super().dispatch(incoming)
        except (
            exception.InvalidInput,
            messaging.NoSuchMethod,
            messaging.UnsupportedVersion,
        ) as exc:
            served = ', '.join(type(each).__name__ for each in self.endpoints)
            message = incoming.message if isinstance(incoming.message, dict) else {}
            called = wire.shown(message.get('method'))
            self._senders.refused(f'a call of {called}', f'{self._broker}, by {served}', exc)
            raise messaging.ExpectedException from exc

    def _refuse_unknown(self, method: str, version: str) -> None:
        """Refuse unknown methods, before oslo.messaging sends heartbeats for them."""
        asked, is_compatible = messages.parse_version(version), False
        for endpoint in self.endpoints:
            served = messages.parse_version(getattr(endpoint, 'target', Endpoint.target).version)
            if served[0] == asked[0] and served[1] >= asked[1]:
                is_compatible = True
                if inspect.isfunction(getattr(type(endpoint), method, None)):
                    return
        if is_compatible:
            raise messaging.NoSuchMethod(method)
        raise messaging.UnsupportedVersion(version, method=method)


def _called(incoming: Any) -> tuple[str, str]:
    """Read method and version of a call; refuse a message that would fail later.

    :raises nova_precache.exception.InvalidInput: a part of the message is invalid
    """
    message = wire.mapping(incoming.message, 'message')
    method, version = message.get('method'), message.get('version', '1.0')
    if not isinstance(method, str) or not _METHOD.fullmatch(method):
        raise exception.InvalidInput(f'method: {wire.shown(method)} is not the name of a method')
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise exception.InvalidInput(f'version: {wire.shown(version)} is not a version')
    if message.get('namespace') is not None:
        raise exception.InvalidInput('namespace: not supported')
    if not {'self', 'ctxt'}.isdisjoint(wire.mapping(message.get('args', {}), 'args')):
        raise exception.InvalidInput('args: self and ctxt are reserved')
    seconds = incoming.client_timeout
    is_number = type(seconds) in (int, float)
    if seconds is not None and not (is_number and 0 <= seconds <= _MONITOR_MAX_SECONDS):
        raise exception.InvalidInput(
            f'timeout: {wire.shown(seconds)} is not a valid number of seconds'
        )
    return method, version
