# SPDX-License-Identifier: Apache-2.0
"""Sends notifications, best effort: the database is the truth."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Protocol

import oslo_messaging as messaging
from oslo_config import cfg
from oslo_utils import timeutils

from nova_precache import context, exception, model, outages, rpc
from nova_precache.notifications import payloads

LATE_SECONDS = 10.0


class Emitter(Protocol):
    """Where notifications go."""

    @property
    def is_silent(self) -> bool:
        """Whether no notification is sent at all."""

    def emit(self, notification: payloads.Notification) -> None:
        """Send a notification; log an error if it cannot be sent."""


class MessagingEmitter:
    """Sends to the drivers of ``[oslo_messaging_notifications]``, none by default.

    While a broker is away, it waits for the number of tries that ``retry`` there sets.

    :raises nova_precache.exception.ConfigError: its transport_url cannot be used
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._host = conf.host
        is_off = conf.notifications.notification_format == 'unversioned'
        transport, url = _connect(conf)
        place = rpc.describe_url(conf, str(url))
        self._outage = outages.Outage(f'Broker {place} (notifications)')
        self._notifier = messaging.Notifier(
            transport,
            driver='noop' if is_off else None,
            serializer=_NovasContext(),
            topics=conf.notifications.versioned_notifications_topics,
        )
        # Retry for ever: a first connection does so only for None, not for -1.
        retries = None if self._notifier.retry < 0 else self._notifier.retry
        self._notifier.retry = rpc.connect_retries(retries, max(1, len(url.hosts)))
        self.is_silent = is_off or not set(conf.oslo_messaging_notifications.driver) - {'noop'}

    def emit(self, notification: payloads.Notification) -> None:
        notifier = self._notifier.prepare(publisher_id=f'{notification.source}:{self._host}')
        with self._noted():
            notifier.info(notification.requester, notification.event_type, notification.payload)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Log a long wait for a broker; if tries are limited, oslo.messaging logs the last one."""
        if self._notifier.retry is not None:
            yield
            return
        late = exception.CellUnreachable(f'it accepted no notification within {LATE_SECONDS:g} s')
        timer = threading.Timer(LATE_SECONDS, self._outage.began, [late])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
        self._outage.over()


def _connect(conf: cfg.ConfigOpts) -> tuple[messaging.Transport, messaging.TransportURL]:
    option = '[oslo_messaging_notifications] transport_url'
    try:
        transport = messaging.get_notification_transport(conf)  # it registers the options
        url = conf.oslo_messaging_notifications.transport_url
        return transport, messaging.TransportURL.parse(conf, url)
    except ImportError as exc:
        raise exception.ConfigError(
            f'{option} needs the Python module {exc.name}, which is not installed'
        ) from None
    except messaging.DriverLoadFailure as exc:
        raise exception.ConfigError(f'{option} cannot be used: {exc}') from None
    except (messaging.InvalidTransportURL, ValueError):  # their texts contain the URL
        raise exception.ConfigError(
            f'{option} cannot be parsed; is the password percent-encoded?'
        ) from None


class RecordingEmitter:
    """Keeps notifications in memory instead of sending them."""

    is_silent = False

    def __init__(self) -> None:
        self.emitted: list[payloads.Notification] = []

    def emit(self, notification: payloads.Notification) -> None:
        self.emitted.append(notification)


class _NovasContext(messaging.NoOpSerializer):  # type: ignore[misc]
    """Serialises a context with Nova's keys; values unknown to this service are empty."""

    def serialize_context(self, ctxt: context.RequestContext) -> model.Json:
        return {
            **ctxt.to_dict(),
            'user_id': ctxt.user_id,
            'user_name': ctxt.user_name,
            'project_name': ctxt.project_name,
            'service_catalog': [],
            'read_deleted': 'no',
            'remote_address': None,
            'quota_class': None,
            'timestamp': timeutils.utcnow().isoformat(timespec='microseconds'),
        }
