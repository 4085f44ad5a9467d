# SPDX-License-Identifier: Apache-2.0
"""The payloads, as consumers of Nova's notifications read them."""

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


def test_the_start_and_the_end_carry_the_aggregate_as_in_nova() -> None:
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


def test_the_progress_carries_the_host_as_in_nova() -> None:
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


def test_whatever_is_not_on_the_host_counts_as_failed() -> None:
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
