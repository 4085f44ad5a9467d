# SPDX-License-Identifier: Apache-2.0
"""The payloads, as consumers of Nova's notifications read them."""

from nova_precache import model
from nova_precache.notifications import payloads

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
    aggregate = model.Aggregate(4, 'uuid-4', 'edge', ('h1', 'h2'), {'availability_zone': 'az1'})

    assert payloads.aggregate(aggregate, ['i1', 'i2']) == {
        'nova_object.name': 'AggregatePayload',
        'nova_object.namespace': 'nova',
        'nova_object.version': '1.1',
        'nova_object.data': {
            'id': 4,
            'uuid': 'uuid-4',
            'name': 'edge',
            'hosts': ['h1', 'h2'],
            'metadata': {'availability_zone': 'az1'},
            'image_uuids': ['i1', 'i2'],
        },
    }


def test_the_progress_carries_the_host_as_in_nova() -> None:
    outcomes = {'i1': 'cached', 'i2': 'error', 'i3': 'existing', 'i4': 'skipped', 'i5': 'new word'}

    assert payloads.host_progress(REQUEST, 'h1', 3, outcomes) == {
        'nova_object.name': 'AggregateCachePayload',
        'nova_object.namespace': 'nova',
        'nova_object.version': '1.0',
        'nova_object.data': {
            'id': 4,
            'uuid': 'uuid-4',
            'name': 'edge',
            'host': 'h1',
            'images_cached': ['i1', 'i3'],
            'images_failed': ['i2', 'i4', 'i5'],
            'index': 3,
            'total': 7,
        },
    }
