# SPDX-License-Identifier: Apache-2.0
"""Each notification is documented, with a sample that equals what is sent."""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from nova_precache import context, model
from nova_precache.conf import notifications as options
from nova_precache.notifications import emitter, payloads
from tests.unit.notifications.conftest import Configure, Listener

ROOT = pathlib.Path(__file__).resolve().parents[3]
SAMPLES = ROOT / 'doc' / 'notification_samples'
GUIDE = (ROOT / 'doc' / 'source' / 'notifications.rst').read_text()
AGGREGATE = model.Aggregate(
    4,
    '788608ec-ebdc-45c5-bc7f-e5f24ab92c80',
    'edge',
    ('compute-1', 'compute-2'),
    {'availability_zone': 'nova'},
)
CACHED, FAILED = '155d900f-4e14-4e4c-a73d-069cbf4541e6', '2fbbd7f0-1a3c-4d1e-9d0f-4c9c3b7d2e55'
MIB = 1024**2
NOON = datetime.datetime(2026, 3, 1, 12)  # noqa: DTZ001 - as the database keeps it
REQUEST = model.CacheRequest(
    id='9b6f2f6c-9d0c-4d6c-a3a6-8b1d8c1d9f10',
    status='planned',
    aggregate_id=AGGREGATE.id,
    aggregate_uuid=AGGREGATE.uuid,
    aggregate_name=AGGREGATE.name,
    images=(CACHED, FAILED),
    project_id='6f70656e737461636b20342065766572',
    user_id='fake',
    request_id='req-5b6c791d-5709-4f36-8fbe-c3e02869e35d',
    hosts_total=2,
    counts={'queued': 4},
    bytes_total=128 * MIB,
    options=model.RequestOptions(
        max_rate_bytes=50 * MIB, deadline=NOON + datetime.timedelta(hours=6), canary=1
    ),
    description='before the rollout',
    client_request_id='rollout-17',
    created_at=NOON,
    planned_at=NOON + datetime.timedelta(seconds=2),
)
TASK = model.Task(
    id=7,
    request_id=REQUEST.id,
    host='compute-1',
    cell_uuid='4e0f2d6b-9a54-4c3f-9d8e-0f3a5d1c2b7a',
    image_id=CACHED,
    status='cached',
    attempts=1,
    bytes_done=32 * MIB,
    bytes_total=32 * MIB,
    started_at=NOON + datetime.timedelta(seconds=3),
    finished_at=NOON + datetime.timedelta(seconds=4, milliseconds=250),
)
ASKER = context.RequestContext(overwrite=False)


def _request(phase: model.Phase, **changes: Any) -> payloads.Notification:
    return payloads.request_state(phase, dataclasses.replace(REQUEST, **changes), ASKER)


def _running(**changes: Any) -> dict[str, Any]:
    """Return the request when its first image is on the first host."""
    return {
        'counts': {'cached': 1, 'queued': 3},
        'bytes_done': 32 * MIB,
        'started_at': NOON + datetime.timedelta(seconds=3),
        **changes,
    }


def _ended() -> dict[str, Any]:
    return _running(
        status='partial',
        counts={'cached': 2, 'error': 2},
        hosts_done=2,
        bytes_done=64 * MIB,
        finished_at=NOON + datetime.timedelta(seconds=9),
    )


def _novas_progress() -> payloads.Notification:
    outcomes = {CACHED: 'cached', FAILED: 'error'}
    return payloads.host_progress(REQUEST, 'compute-1', 1, outcomes, ASKER)


PHASE = model.Phase
SENT: dict[str, Callable[[], payloads.Notification]] = {
    'aggregate.cache_images.start': lambda: payloads.whole_request(PHASE.START, AGGREGATE, ASKER),
    'aggregate.cache_images.progress': _novas_progress,
    'aggregate.cache_images.end': lambda: payloads.whole_request(PHASE.END, AGGREGATE, ASKER),
    'image_precache.request.start': lambda: _request(PHASE.START),
    'image_precache.request.end': lambda: _request(PHASE.END, **_ended()),
    'image_precache.request.cancel': lambda: _request(
        PHASE.CANCEL, **_running(status='cancelling', counts={'cached': 1, 'cancelled': 3})
    ),
    'image_precache.request.pause': lambda: _request(PHASE.PAUSE, **_running(status='paused')),
    'image_precache.request.resume': lambda: _request(PHASE.RESUME, **_running(status='running')),
    'image_precache.request.change': lambda: _request(
        PHASE.CHANGE, **_running(status='running', priority=5)
    ),
    'image_precache.request.retry': lambda: _request(
        PHASE.RETRY, status='accepted', counts={'cached': 2, 'queued': 2}, bytes_done=64 * MIB
    ),
    'image_precache.task': lambda: payloads.task_outcome(TASK, ASKER),
}


def _sample(event_type: str) -> pathlib.Path:
    return SAMPLES / f'{event_type.replace(".", "-")}.json'


@pytest.mark.parametrize('event_type', SENT)
def test_notification_matches_its_sample(event_type: str, configure: Configure) -> None:
    conf = configure()
    emitter.MessagingEmitter(conf).emit(SENT[event_type]())
    with Listener(conf, 'versioned_notifications') as listener:
        heard = listener.next()

    assert json.loads(_sample(event_type).read_text()) == {
        'event_type': heard.event_type,
        'payload': heard.payload,
        'priority': heard.priority,
        'publisher_id': heard.publisher_id,
    }


@pytest.mark.parametrize('event_type', SENT)
def test_guide_explains_notification_with_sample(event_type: str) -> None:
    assert f'\n``{event_type}``\n' in GUIDE
    assert f'/notification_samples/{_sample(event_type).name}' in GUIDE


def test_every_sample_has_its_notification() -> None:
    assert set(SAMPLES.iterdir()) == {_sample(event_type) for event_type in SENT}


def test_each_request_phase_has_notification() -> None:
    of_hosts = {model.Phase.PROGRESS}  # their tasks are announced one by one

    assert {f'image_precache.request.{phase}' for phase in set(model.Phase) - of_hosts} <= set(SENT)


@pytest.mark.parametrize('field', [each.name for each in dataclasses.fields(model.RequestOptions)])
def test_every_request_option_notified(field: str) -> None:
    told = SENT['image_precache.request.start']().payload['nova_object.data']['options']

    assert field in told['nova_object.data']


@pytest.mark.parametrize('option', [each.name for each in options.OPTIONS])
def test_guide_names_every_option(option: str) -> None:
    assert f'``[notifications] {option}``' in GUIDE
