# SPDX-License-Identifier: Apache-2.0
"""Sends notifications after the commit: best effort, the database is the truth."""

import logging
from typing import Protocol

import oslo_messaging as messaging
from oslo_config import cfg

from nova_precache import model

LOG = logging.getLogger(__name__)

TOPIC = 'versioned_notifications'


class Emitter(Protocol):
    """Where notifications go."""

    def emit(self, event_type: str, payload: model.Json) -> None:
        """Send a notification; a failure is logged and nothing else."""


class MessagingEmitter:
    """Sends to the drivers of ``[oslo_messaging_notifications]``, none by default."""

    def __init__(self, conf: cfg.ConfigOpts, publisher_id: str) -> None:
        self._notifier = messaging.Notifier(
            messaging.get_notification_transport(conf),
            publisher_id,
            topics=[TOPIC],
            retry=0,
        )

    def emit(self, event_type: str, payload: model.Json) -> None:
        try:
            self._notifier.info({}, event_type, payload)
        except messaging.MessagingException as exc:
            LOG.warning('Notification %s was not sent: %s', event_type, exc)


class RecordingEmitter:
    """Keeps what would be sent, in memory."""

    def __init__(self) -> None:
        self.emitted: list[tuple[str, model.Json]] = []

    def emit(self, event_type: str, payload: model.Json) -> None:
        self.emitted.append((event_type, payload))
