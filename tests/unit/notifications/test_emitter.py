# SPDX-License-Identifier: Apache-2.0
"""Notifications reach the bus when it is up, and do no harm when it is not."""

import dataclasses
import logging
import sys
from typing import Any

import oslo_messaging as messaging
import pytest
from oslo_context import context as oslo_context
from oslo_messaging.notify import _impl_noop

from nova_precache import context, exception
from nova_precache.notifications import emitter, payloads
from tests.unit.notifications.conftest import Configure, Heard, Listener

TOPIC = 'versioned_notifications'
ASKER = context.RequestContext(
    user_id='u1',
    project_id='p1',
    request_id='req-1',
    is_admin=True,
    auth_token='the-token-of-the-caller',
    overwrite=False,
)
START = payloads.Notification(
    'aggregate.cache_images.start', payloads.Publisher.API, {'a': 1}, ASKER
)
PROGRESS = dataclasses.replace(
    START, event_type='aggregate.cache_images.progress', source=payloads.Publisher.CONDUCTOR
)


def _sent(configure: Configure, *notifications: payloads.Notification) -> list[Heard]:
    conf = configure()
    made = emitter.MessagingEmitter(conf)
    with Listener(conf, TOPIC) as listener:
        for notification in notifications:
            made.emit(notification)
        return [listener.next() for _ in notifications]


def test_publisher_matches_nova_services_on_host(configure: Configure) -> None:
    start, progress = _sent(configure, START, PROGRESS)

    assert start.event_type == 'aggregate.cache_images.start'
    assert progress.event_type == 'aggregate.cache_images.progress'
    assert start.publisher_id == 'nova-api:controller-1'
    assert progress.publisher_id == 'nova-conductor:controller-1'
    assert start.payload == {'a': 1}
    assert (start.priority, progress.priority) == ('INFO', 'INFO')


def test_context_names_requester_without_token(configure: Configure) -> None:
    [start] = _sent(configure, START)

    asked = {key: start.context[key] for key in ('user_id', 'project_id', 'request_id')}
    assert asked == {'user_id': 'u1', 'project_id': 'p1', 'request_id': 'req-1'}
    assert start.context['is_admin'] is True
    assert start.context['auth_token'] is None
    assert 'the-token-of-the-caller' not in str(start)


def test_later_log_lines_omit_requester(configure: Configure) -> None:
    before = oslo_context.get_current()

    _sent(configure, START)

    assert oslo_context.get_current() is before


def test_every_configured_topic_sent(configure: Configure) -> None:
    conf = configure('[notifications]\nversioned_notifications_topics = mine,yours\n')

    emitter.MessagingEmitter(conf).emit(START)

    for topic in ('mine', 'yours'):
        with Listener(conf, topic) as listener:
            assert listener.next().payload == {'a': 1}


@pytest.mark.parametrize('form', ['versioned', 'both'])
def test_nova_notifications_are_versioned(configure: Configure, form: str) -> None:
    conf = configure(f'[notifications]\nnotification_format = {form}\n')

    emitter.MessagingEmitter(conf).emit(START)

    with Listener(conf, TOPIC) as listener:
        assert listener.next().payload == {'a': 1}


@pytest.mark.parametrize(
    ('sections', 'driver'),
    [
        ('[notifications]\nnotification_format = unversioned\n', 'driver = messagingv2'),
        ('', ''),
        ('', 'driver = noop'),
    ],
)
def test_unversioned_or_driverless_emitter_sends_nothing(
    configure: Configure, sections: str, driver: str
) -> None:
    silent = emitter.MessagingEmitter(configure(sections, driver))
    assert silent.is_silent
    silent.emit(START)
    conf = configure()
    heard = emitter.MessagingEmitter(conf)
    assert not heard.is_silent
    heard.emit(PROGRESS)

    with Listener(conf, TOPIC) as listener:
        assert listener.next().event_type == PROGRESS.event_type


@pytest.mark.parametrize(
    ('url', 'why'),
    [
        ('nosuch://u:s3cret@host/', 'cannot be used: Failed to load transport driver "nosuch"'),
        ('rabbit://u:s3cret@host:port/', 'cannot be parsed; is the password percent-encoded?'),
        ('kafka://u:s3cret@host/', 'needs the Python module confluent_kafka, which is not'),
    ],
)
def test_unusable_url_names_option(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    monkeypatch.setitem(sys.modules, 'confluent_kafka', None)
    conf = configure(driver=f'driver = messagingv2\ntransport_url = {url}')

    with pytest.raises(exception.ConfigError) as refused:
        emitter.MessagingEmitter(conf)

    assert str(refused.value).startswith(f'[oslo_messaging_notifications] transport_url {why}')
    assert 's3cret' not in str(refused.value)


def test_retries_follow_the_option(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int | None] = []

    def notify(self: object, ctxt: Any, message: Any, priority: str, retry: int | None) -> None:
        tries.append(retry)

    monkeypatch.setattr(_impl_noop.NoOpDriver, 'notify', notify)

    for retry in ('', 'retry = -1', 'retry = 0', 'retry = 3'):
        emitter.MessagingEmitter(configure(driver=f'driver = noop\n{retry}')).emit(START)

    assert tries == [None, None, 0, 3]


def test_failure_logged_without_token(
    configure: Configure, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise messaging.MessageDeliveryFailure('the broker is away')

    monkeypatch.setattr(messaging.transport.Transport, '_send_notification', refuse)

    with caplog.at_level(logging.ERROR):
        emitter.MessagingEmitter(configure()).emit(START)

    [message] = caplog.messages
    assert message.startswith(f'Could not send notification to {TOPIC}')
    assert 'the-token-of-the-caller' not in caplog.text


def test_recording_emitter_keeps_order() -> None:
    made = emitter.RecordingEmitter()

    made.emit(START)
    made.emit(PROGRESS)

    assert made.emitted == [START, PROGRESS]
