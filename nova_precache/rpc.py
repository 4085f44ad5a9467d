# SPDX-License-Identifier: Apache-2.0
"""Connections to message brokers, and the clients and servers made on them.

The in-memory driver shares its exchanges over the whole process, whatever the
URL. So a URL such as ``fake:///cell1`` gets an exchange of the name of its
virtual host; a real broker's URL keeps ``[DEFAULT] control_exchange``.
"""

import contextlib
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import amqp
import kombu.exceptions
import oslo_messaging as messaging
from oslo_config import cfg

from nova_precache import context, exception

LOG = logging.getLogger(__name__)

Method = TypeVar('Method', bound=Callable[..., Any])

UNREADABLE = '<unreadable>'
AUTO = 'auto'
# Raised as it is where a new connection cannot be made.
_NO_CONNECTION = (kombu.exceptions.KombuError, amqp.AMQPError)
_REMOTE_EXCEPTIONS = ['nova_precache.exception', 'oslo_messaging.rpc.dispatcher']


class Endpoint:
    """The base of endpoints: answers the probe that precedes a client's first call.

    The class of an endpoint names the version that it serves.
    """

    target = messaging.Target(version='1.0')

    def __init_subclass__(cls, version: str = '1.0') -> None:
        cls.target = messaging.Target(version=version)

    def ping(self, ctxt: context.RequestContext) -> str:
        """Tell the version that is served; most often, that this could be sent was the question."""
        return str(self.target.version)


def refuses(*errors: type[Exception]) -> Callable[[Method], Method]:
    """Mark a method of an endpoint that answers these errors: no failure, and not logged as one."""
    return messaging.expected_exceptions(*errors)  # type: ignore[no-any-return]


class ContextSerializer(messaging.Serializer):  # type: ignore[misc]
    """Carries the request context without its token."""

    def serialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def deserialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return ctxt.to_wire()

    def deserialize_context(self, ctxt: dict[str, Any]) -> context.RequestContext:
        """Make the context of a call, which the log of the thread that serves it goes under."""
        arrived = context.RequestContext.from_wire(ctxt)
        arrived.update_store()
        return arrived


class NovaContextSerializer(ContextSerializer):
    """Carries to a Nova what it goes by: it asks its image service with the token of the caller."""

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return {
            'request_id': ctxt.request_id,
            'global_request_id': ctxt.global_request_id,
            'is_admin': ctxt.is_admin,
            'auth_token': ctxt.auth_token,
        }


class Client:
    """Calls and casts to one topic on one transport.

    :param serializer: of what is not called by our own endpoints, which answer a probe
    :param raw: the connections that are used, by default those for calls
    """

    def __init__(
        self,
        transport: 'Transport',
        topic: str,
        version_cap: str | None,
        retries: int | None,
        serializer: messaging.Serializer | None = None,
        raw: messaging.Transport | None = None,
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, version='1.0')
        self._transport = transport
        self._client = messaging.get_rpc_client(
            raw or transport.calling,
            target,
            version_cap=version_cap,
            serializer=serializer or ContextSerializer(),
            retry=retries,
        )
        self._has_called = serializer is not None

    def can_send(self, version: str) -> bool:
        """Tell whether the pin in ``[upgrade_levels]`` lets this version be sent."""
        return bool(self._client.can_send_version(version))

    def call(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        timeout_seconds: float | None = None,
        monitor_seconds: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Call and wait; ``monitor_seconds`` without a heartbeat end the wait early.

        :raises TimeoutError: nobody answered in time
        :raises nova_precache.exception.CellUnreachable: the broker took no message
        :raises nova_precache.exception.VersionUnsupported: here or there the version is too new
        :raises nova_precache.exception.PrecacheError: whoever was called failed
        """
        prepared = self._client.prepare(
            server=server,
            version=version,
            timeout=timeout_seconds,
            call_monitor_timeout=monitor_seconds,
        )
        with self._transport.used_to_call(), _own_errors(f'{method} {version}'):
            self._probe(ctxt, server)
            return prepared.call(ctxt, method, **arguments)

    def _probe(self, ctxt: context.RequestContext, server: str | None) -> None:
        """Fail on a dead broker before the first call.

        That call makes the queue for replies, for which oslo.messaging waits
        without end and whatever the retries; a cast respects them.
        """
        if not self._has_called:
            self._client.prepare(server=server, version='1.0').cast(ctxt, 'ping')
            self._has_called = True

    def cast(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        **arguments: Any,
    ) -> None:
        """Send and do not wait.

        :raises nova_precache.exception.CellUnreachable: the broker took no message
        :raises nova_precache.exception.VersionUnsupported: the pin forbids the version
        """
        with self._transport.used_to_call(), _own_errors(f'{method} {version}'):
            self._client.prepare(server=server, version=version).cast(ctxt, method, **arguments)


@contextlib.contextmanager
def _own_errors(what: str) -> Iterator[None]:
    """Translate what oslo.messaging raises; ``what`` is called or cast."""
    try:
        yield
    except messaging.MessagingTimeout as exc:
        raise TimeoutError(str(exc)) from exc
    except (messaging.MessageDeliveryFailure, *_NO_CONNECTION) as exc:
        raise exception.CellUnreachable(_first_line(exc)) from exc
    except messaging.RPCVersionCapError as exc:
        raise exception.VersionUnsupported(
            f'{what} may not be sent, the pin is {exc.version_cap}'
        ) from exc
    except (messaging.UnsupportedVersion, messaging.NoSuchMethod) as exc:
        raise exception.VersionUnsupported(f'{what} is not known to whoever was called') from exc
    except messaging.MessagingException as exc:
        raise exception.PrecacheError(_first_line(exc)) from exc


class Server:
    """Serves endpoints on a topic, each call in a thread of its own."""

    def __init__(
        self, transport: 'Transport', topic: str, name: str, endpoints: Sequence[object]
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, server=name)
        self._server = messaging.get_rpc_server(
            transport.serving,
            target,
            list(endpoints),
            serializer=ContextSerializer(),
            access_policy=messaging.DefaultRPCAccessPolicy,
        )
        self._lock = threading.Lock()
        self._is_serving = False
        self._is_stopped = False
        self.has_failed = False

    def start(self) -> None:
        """Start to serve, waiting for the broker for as long as that takes."""
        self._server.start()
        with self._lock:
            self._is_serving = True
            is_late = self._is_stopped
        if is_late:
            self._close()

    def start_in_background(self) -> None:
        """Start to serve when the broker can be reached; a dead one delays nobody."""
        threading.Thread(target=self._try_to_start, name='rpc-server-start', daemon=True).start()

    def stop(self) -> None:
        """Take no more messages and wait for the calls being served."""
        with self._lock:
            self._is_stopped = True
            is_serving = self._is_serving
        if is_serving:
            self._close()

    def _try_to_start(self) -> None:
        try:
            self.start()
        except Exception:
            LOG.exception('An RPC server could not be started')
            self.has_failed = True

    def _close(self) -> None:
        self._server.stop()
        self._server.wait()


class Transport:
    """The way to one broker, with connections for calls apart from those for servers.

    When a broker is lost, oslo.messaging reconnects a connection that is not in use and
    lets nobody have it until then: for a server's answers without end, so that a call
    that is to fail soon would wait for one of these as long as the broker is away. What only
    probes a broker has its own, too: the connections for calls are left to calls.
    """

    def __init__(
        self,
        calling: messaging.Transport,
        serving: messaging.Transport,
        exchange: str | None,
        probing: messaging.Transport = None,
    ) -> None:
        self.calling = calling
        self.serving = serving
        self._probing = probing or calling
        self.exchange = exchange
        self._lock = threading.Lock()
        self._calls = 0
        self._is_retired = False

    def client(
        self, topic: str, version_cap: str | None = None, retries: int | None = None
    ) -> Client:
        """Make a client; ``retries`` None retries a dead broker for ever."""
        return Client(self, topic, version_cap, retries)

    def probe(self, topic: str) -> Client:
        """Make a client that probes the broker and gives a dead one up at once."""
        return Client(self, topic, None, retries=0, raw=self._probing)

    def nova_client(self, topic: str, version_cap: str | None, retries: int | None) -> Client:
        """Make a client of a stock Nova's service, which answers no probe before a call."""
        return Client(self, topic, version_cap, retries, NovaContextSerializer())

    def server(self, topic: str, name: str, endpoints: Sequence[object]) -> Server:
        return Server(self, topic, name, endpoints)

    @contextlib.contextmanager
    def used_to_call(self) -> Iterator[None]:
        """Keep the connections open for one call.

        :raises nova_precache.exception.PrecacheError: the transport is retired
        """
        with self._lock:
            if self._is_retired:
                raise exception.PrecacheError('The broker is no longer used')
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                is_over = self._is_retired and self._calls == 0
            if is_over:
                self._close()

    def retire(self) -> None:
        """Make no more calls, and close the connections after the last answer.

        The servers must have been stopped.
        """
        with self._lock:
            self._is_retired = True
            is_over = self._calls == 0
        if is_over:
            self._close()

    def _close(self) -> None:
        """Close in the background: a connection to a dead broker does not let go soon."""
        if self.exchange is not None:
            return  # in memory: closing one empties the exchanges of all
        for raw in {self.calling, self.serving, self._probing}:
            threading.Thread(target=raw.cleanup, name='transport-close', daemon=True).start()


def connect(conf: cfg.ConfigOpts, url: str | None = None) -> Transport:
    """Connect to the broker of ``url``, or of ``[DEFAULT] transport_url``.

    :raises nova_precache.exception.ConfigError: the URL cannot be used
    """
    try:
        parsed = messaging.TransportURL.parse(conf, url)
        # Each connects when it is first used.
        calling, serving, probing = (
            messaging.get_rpc_transport(conf, url=parsed, allowed_remote_exmods=_REMOTE_EXCEPTIONS)
            for _ in range(3)
        )
    except (messaging.InvalidTransportURL, messaging.DriverLoadFailure, ValueError) as exc:
        raise exception.ConfigError(f'transport_url: {type(exc).__name__}') from None
    return Transport(calling, serving, exchange_of(parsed), probing)


def version_cap(option: str, pin: str | None, newest: str, oldest: str = '0.0') -> str | None:
    """Read a pin in ``[upgrade_levels]``: the highest version to send, None for any.

    :param newest: the version of this release
    :param oldest: under which nothing works
    :raises nova_precache.exception.ConfigError: it is no version, or one that cannot be
    """
    if not pin or pin == AUTO:
        return None
    shown = f'[upgrade_levels] {option} = {pin}'
    if not re.fullmatch(r'[0-9]{1,5}\.[0-9]{1,5}', pin):
        raise exception.ConfigError(f'{shown} is neither {AUTO} nor a version such as {newest}')
    if _version(pin) < _version(oldest):
        raise exception.ConfigError(f'{shown} is too low, the oldest version is {oldest}')
    if _version(pin)[0] > _version(newest)[0]:
        raise exception.ConfigError(f'{shown} is not known, the newest version is {newest}')
    return pin


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split('.')
    return int(major), int(minor)


def exchange_of(url: messaging.TransportURL) -> str | None:
    """Name the exchange of an in-memory URL; None means the configured one."""
    if url.transport not in ('fake', 'kombu+memory'):
        return None
    return f'nova-precache-{url.virtual_host or "api"}'


def describe_url(conf: cfg.ConfigOpts, url: str) -> str:
    """Tell where a URL leads, and nothing of who logs in there.

    In a password that was not quoted, a separator makes the rest look like a host or a
    virtual host; a URL that could be such a one is ``<unreadable>``.
    """
    if not url:
        return ''  # which oslo.messaging would take for [DEFAULT] transport_url
    try:
        if not _is_quoted(url):
            return UNREADABLE
        parsed = messaging.TransportURL.parse(conf, url)
    except (messaging.InvalidTransportURL, ValueError):
        return UNREADABLE
    parsed.hosts = [messaging.TransportHost(host.hostname, host.port) for host in parsed.hosts]
    parsed.query = {}
    return str(parsed)


def _is_quoted(url: str) -> bool:
    """Tell that no ``@`` follows what cannot be part of a user or a password."""
    netloc = urllib.parse.urlsplit(url).netloc
    have_users = ['@' in host for host in netloc.split(',')]
    return netloc.count('@') == url.count('@') and have_users == sorted(have_users, reverse=True)


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
