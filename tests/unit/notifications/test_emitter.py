# SPDX-License-Identifier: Apache-2.0
"""Notifications reach the bus when it is there, and hurt nobody when it is not."""

import logging
import pathlib
import queue
from typing import Any

import oslo_messaging as messaging
import pytest

from nova_precache import conf as options
from nova_precache.notifications import emitter

EVENT = 'aggregate.cache_images.start'
WAIT_SECONDS = 20


class Listener:
    """A consumer of notifications."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[str, str, Any]] = queue.Queue()

    def info(
        self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        self.heard.put((publisher_id, event_type, payload))


def test_a_notification_is_sent_to_the_topic_of_the_versioned_ones(
    tmp_path: pathlib.Path,
) -> None:
    file = tmp_path / 'nova-precache.conf'
    file.write_text(
        '[oslo_messaging_notifications]\ndriver = messagingv2\ntransport_url = fake:///\n'
    )
    conf = options.new(config_files=[str(file)])
    made = emitter.MessagingEmitter(conf, 'nova-conductor:host1')
    listener = Listener()
    server = messaging.get_notification_listener(
        messaging.get_notification_transport(conf),
        [messaging.Target(topic=emitter.TOPIC)],
        [listener],
        executor='threading',
    )
    server.start()
    try:
        made.emit(EVENT, {'a': 1})

        assert listener.heard.get(timeout=WAIT_SECONDS) == (
            'nova-conductor:host1',
            EVENT,
            {'a': 1},
        )
    finally:
        server.stop()
        server.wait()


def test_without_a_driver_nothing_is_sent_and_nothing_fails() -> None:
    conf = options.new(config_files=[])
    conf.set_override('transport_url', 'fake:///')

    emitter.MessagingEmitter(conf, 'nova-conductor:host1').emit(EVENT, {})


def test_a_notification_that_cannot_be_sent_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = options.new(config_files=[])
    conf.set_override('transport_url', 'fake:///')
    made = emitter.MessagingEmitter(conf, 'nova-conductor:host1')

    def refuse(*arguments: Any) -> None:
        raise messaging.MessageDeliveryFailure('the broker is away')

    monkeypatch.setattr(messaging.Notifier, 'info', refuse)

    with caplog.at_level(logging.WARNING):
        made.emit(EVENT, {})

    assert caplog.messages == [f'Notification {EVENT} was not sent: the broker is away']


def test_the_recording_emitter_keeps_the_order() -> None:
    made = emitter.RecordingEmitter()

    for number in range(2):
        made.emit(EVENT, {'number': number})

    assert made.emitted == [(EVENT, {'number': 0}), (EVENT, {'number': 1})]
