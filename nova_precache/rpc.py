# SPDX-License-Identifier: Apache-2.0
"""Connections to message brokers, and the clients and servers made on them.

The in-memory driver shares its exchanges over the whole process, whatever the
URL. So a URL such as ``fake:///cell1`` gets an exchange of the name of its
virtual host; a real broker's URL keeps ``[DEFAULT] control_exchange``.
"""

import logging
import threading
import urllib.parse
from collections.abc import Sequence
from typing import Any

import oslo_messaging as messaging
from oslo_config import cfg

from nova_precache import context, exception

LOG = logging.getLogger(__name__)

UNREADABLE = '<unreadable>'
_REMOTE_EXCEPTIONS = ['nova_precache.exception']


class Endpoint:
    """The base of endpoints: answers the probe that precedes a client's first call."""

    target = messaging.Target(version='1.0')

    def ping(self, ctxt: context.RequestContext) -> None:
        """Do nothing; that the message could be sent was the question."""


class ContextSerializer(messaging.Serializer):  # type: ignore[misc]
    """Carries the request context without its token."""

    def serialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def deserialize_entity(self, ctxt: context.RequestContext, entity: Any) -> Any:
        return entity

    def serialize_context(self, ctxt: context.RequestContext) -> dict[str, Any]:
        return ctxt.to_wire()

    def deserialize_context(self, ctxt: dict[str, Any]) -> context.RequestContext:
        return context.RequestContext.from_wire(ctxt)


class Client:
    """Calls and casts to one topic on one transport."""

    def __init__(
        self, transport: 'Transport', topic: str, version_cap: str | None, retries: int | None
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, version='1.0')
        self._client = messaging.get_rpc_client(
            transport.raw,
            target,
            version_cap=version_cap,
            serializer=ContextSerializer(),
            retry=retries,
        )
        self._has_called = False

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
        :raises nova_precache.exception.PrecacheError: whoever was called failed
        """
        prepared = self._client.prepare(
            server=server,
            version=version,
            timeout=timeout_seconds,
            call_monitor_timeout=monitor_seconds,
        )
        try:
            self._probe(ctxt, server)
            return prepared.call(ctxt, method, **arguments)
        except messaging.MessagingTimeout as exc:
            raise TimeoutError(str(exc)) from exc
        except messaging.MessageDeliveryFailure as exc:
            raise exception.CellUnreachable(_first_line(exc)) from exc
        except messaging.MessagingException as exc:
            raise exception.PrecacheError(_first_line(exc)) from exc

    def _probe(self, ctxt: context.RequestContext, server: str | None) -> None:
        """Fail on a dead broker before the first call.

        That call makes the queue for replies, for which oslo.messaging waits
        without end and whatever the retries; a cast respects them.
        """
        if not self._has_called:
            self._client.prepare(server=server, version='1.0').cast(ctxt, 'ping')
            self._has_called = True

    def cast(
        self, ctxt: context.RequestContext, method: str, version: str, **arguments: Any
    ) -> None:
        """Send and do not wait.

        :raises nova_precache.exception.CellUnreachable: the broker took no message
        """
        try:
            self._client.prepare(version=version).cast(ctxt, method, **arguments)
        except messaging.MessageDeliveryFailure as exc:
            raise exception.CellUnreachable(_first_line(exc)) from exc


class Server:
    """Serves endpoints on a topic, each call in a thread of its own."""

    def __init__(
        self, transport: 'Transport', topic: str, name: str, endpoints: Sequence[object]
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, server=name)
        self._server = messaging.get_rpc_server(
            transport.raw,
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
    """A connection to one broker."""

    def __init__(self, raw: messaging.Transport, exchange: str | None) -> None:
        self.raw = raw
        self.exchange = exchange

    def client(
        self, topic: str, version_cap: str | None = None, retries: int | None = None
    ) -> Client:
        """Make a client; ``retries`` None retries a dead broker for ever."""
        return Client(self, topic, version_cap, retries)

    def server(self, topic: str, name: str, endpoints: Sequence[object]) -> Server:
        return Server(self, topic, name, endpoints)


def connect(conf: cfg.ConfigOpts, url: str | None = None) -> Transport:
    """Connect to the broker of ``url``, or of ``[DEFAULT] transport_url``.

    :raises nova_precache.exception.ConfigError: the URL cannot be used
    """
    try:
        parsed = messaging.TransportURL.parse(conf, url)
        raw = messaging.get_rpc_transport(
            conf, url=parsed, allowed_remote_exmods=_REMOTE_EXCEPTIONS
        )
    except (messaging.InvalidTransportURL, messaging.DriverLoadFailure, ValueError) as exc:
        raise exception.ConfigError(f'transport_url: {type(exc).__name__}') from None
    return Transport(raw, exchange_of(parsed))


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
