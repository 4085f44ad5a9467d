# SPDX-License-Identifier: Apache-2.0
"""Call and cast to the servers of a topic."""

from typing import Any

import oslo_messaging as messaging

from nova_precache import context
from nova_precache.rpc import errors, message, transport as transports


class Client:
    """Calls and casts to one topic on one transport.

    :param retries: None retries a dead broker until the call is abandoned
    :param serializer: None: the one for the servers of this service
    """

    def __init__(
        self,
        transport: transports.Transport,
        topic: str,
        version_cap: str | None = None,
        retries: int | None = None,
        serializer: messaging.Serializer | None = None,
    ) -> None:
        target = messaging.Target(exchange=transport.exchange, topic=topic, version='1.0')
        self._transport = transport
        self._client = messaging.get_rpc_client(
            transport.calling,
            target,
            version_cap=version_cap,
            serializer=serializer or message.ContextSerializer(),
            retry=transports.connect_retries(retries, transport.hosts),
        )

    def can_send(self, version: str) -> bool:
        """Return whether the pin in ``[upgrade_levels]`` allows this version."""
        return bool(self._client.can_send_version(version))

    def call(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        timeout_seconds: float | None = None,
        monitor_seconds: float | None = None,
        send_seconds: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Call and wait; ``monitor_seconds`` without a heartbeat end the wait early.

        :param send_seconds: limit for the broker to take the message; None: ``SEND_SECONDS``
        :raises TimeoutError: no answer arrived in time
        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        :raises nova_precache.exception.VersionUnsupported: the pin forbids the version, or the
            server does not know it
        :raises nova_precache.exception.PrecacheError: the call failed at the other end, or its
            answer is malformed; errors of this service keep their class
        """
        prepared = self._client.prepare(
            server=server,
            version=version,
            timeout=timeout_seconds,
            call_monitor_timeout=monitor_seconds,
        )
        what = f'{method} {version}'
        answer_seconds = timeout_seconds or self._client.conf.rpc_response_timeout
        taken_seconds = transports.SEND_SECONDS if send_seconds is None else send_seconds
        self._transport.make_ready_for_replies(taken_seconds)
        return self._transport.send(
            ctxt,
            what,
            answer_seconds + taken_seconds,
            lambda: errors.read_answer(lambda: prepared.call(ctxt, method, **arguments), what),
        )

    def cast(
        self,
        ctxt: context.RequestContext,
        method: str,
        version: str,
        server: str | None = None,
        **arguments: Any,
    ) -> None:
        """Send without waiting for an answer.

        :raises nova_precache.exception.CellUnreachable: the broker did not take the message
        :raises nova_precache.exception.VersionUnsupported: the pin forbids the version
        """
        prepared = self._client.prepare(server=server, version=version)
        self._transport.send(
            ctxt,
            f'{method} {version}',
            transports.SEND_SECONDS,
            lambda: prepared.cast(ctxt, method, **arguments),
        )
