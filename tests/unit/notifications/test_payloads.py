# SPDX-License-Identifier: Apache-2.0
"""The payloads, as consumers of Nova's notifications read them."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from nova_precache import context, model
from nova_precache.notifications import payloads

ASKER = context.RequestContext(overwrite=False)
REQUEST = model.CacheRequest(
    id='r1',
    status='running',
    aggregate_id=4,
    aggregate_uuid='uuid-4',
    aggregate_name='edge',
    images=('i1', 'i2'),
    project_id=None,
    user_id=None,
    request_id=None,
    hosts_total=7,
)


def test_start_and_end_carry_aggregate() -> None:
    aggregate = model.Aggregate(4, 'uuid-4', 'edge', ('h2', 'h1'), {'availability_zone': 'az1'})

    for phase in (model.Phase.START, model.Phase.END):
        made = payloads.whole_request(phase, aggregate, ASKER)

        assert made.event_type == f'aggregate.cache_images.{phase}'
        assert made.payload == {
            'nova_object.name': 'AggregatePayload',
            'nova_object.namespace': 'nova',
            'nova_object.version': '1.1',
            'nova_object.data': {
                'id': 4,
                'uuid': 'uuid-4',
                'name': 'edge',
                'hosts': ['h2', 'h1'],
                'metadata': {'availability_zone': 'az1'},
            },
        }


def _progress(outcomes: Mapping[str, str]) -> Any:
    made = payloads.host_progress(REQUEST, 'h1', 3, outcomes, ASKER)
    assert made.event_type == 'aggregate.cache_images.progress'
    return made.payload


def test_progress_carries_host_as_in_nova() -> None:
    assert _progress({'i1': 'cached', 'i2': 'error'}) == {
        'nova_object.name': 'AggregateCachePayload',
        'nova_object.namespace': 'nova',
        'nova_object.version': '1.0',
        'nova_object.data': {
            'id': 4,
            'uuid': 'uuid-4',
            'name': 'edge',
            'host': 'h1',
            'images_cached': ['i1'],
            'images_failed': ['i2'],
            'index': 3,
            'total': 7,
        },
    }


def test_uncached_outcomes_count_as_failed() -> None:
    outcomes = {
        'i3': 'existing',
        'i4': 'skipped',
        'i1': 'cached',
        'i5': 'a new word',
        'i2': 'error',
    }

    data = _progress(outcomes)['nova_object.data']

    assert data['images_cached'] == ['i3', 'i1']
    assert data['images_failed'] == ['i4', 'i5', 'i2']


def test_own_payloads_have_own_namespace() -> None:
    task = model.Task(1, 'r1', 'h1', None, 'i1', 'skipped', 'host h1 is down')

    for made in (
        payloads.request_state(model.Phase.PAUSE, REQUEST, ASKER),
        payloads.task_outcome(task, ASKER),
    ):
        assert made.payload['nova_object.namespace'] == 'image_precache'
        assert made.payload['nova_object.version'] == '1.0'
        assert made.event_type.startswith('image_precache.')


def test_named_hosts_replace_aggregate() -> None:
    request = dataclasses.replace(
        REQUEST,
        aggregate_id=None,
        aggregate_uuid=None,
        aggregate_name=None,
        hosts=('h1', 'h2'),
    )

    data = payloads.request_state(model.Phase.START, request, ASKER).payload['nova_object.data']

    assert data['hosts'] == ['h1', 'h2']
    assert data['aggregate_id'] is None


def test_task_has_duration_and_failure_reason() -> None:
    noon = datetime.datetime(2026, 3, 1, 12)  # noqa: DTZ001 - as the database keeps it
    task = model.Task(
        1,
        'r1',
        'h1',
        'cell',
        'i1',
        'error',
        'no space',
        attempts=2,
        bytes_done=5,
        started_at=noon,
        finished_at=noon + datetime.timedelta(seconds=90, milliseconds=500),
    )

    data = payloads.task_outcome(task, ASKER).payload['nova_object.data']

    assert (data['seconds'], data['reason'], data['attempts']) == (90.5, 'no space', 2)
    assert data['finished_at'] == '2026-03-01T12:01:30Z'


def test_unstarted_task_took_no_time() -> None:
    task = model.Task(1, 'r1', 'h1', None, 'i1', 'skipped', 'host h1 is down')

    data = payloads.task_outcome(task, ASKER).payload['nova_object.data']

    assert data['seconds'] is None
    assert data['started_at'] is None
