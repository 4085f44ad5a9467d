# SPDX-License-Identifier: Apache-2.0
"""The payloads, field by field as Nova's notification objects serialise them."""

from collections.abc import Mapping, Sequence

from nova_precache import model


def aggregate(aggregate: model.Aggregate, image_ids: Sequence[str]) -> model.Json:
    """An ``AggregatePayload`` 1.1."""
    return _versioned(
        'AggregatePayload',
        '1.1',
        {
            'id': aggregate.id,
            'uuid': aggregate.uuid,
            'name': aggregate.name,
            'hosts': list(aggregate.hosts),
            'metadata': dict(aggregate.metadata),
            'image_uuids': list(image_ids),
        },
    )


def host_progress(
    request: model.CacheRequest, host: str, index: int, outcomes: Mapping[str, str]
) -> model.Json:
    """An ``AggregateCachePayload`` 1.0.

    :param index: this host is the index-th that is done, counted from 1
    :param outcomes: image id to final task status
    """
    cached = [image for image, status in outcomes.items() if status in model.TASK_SUCCEEDED]
    return _versioned(
        'AggregateCachePayload',
        '1.0',
        {
            'id': request.aggregate_id,
            'uuid': request.aggregate_uuid,
            'name': request.aggregate_name,
            'host': host,
            'images_cached': cached,
            'images_failed': [image for image in outcomes if image not in cached],
            'index': index,
            'total': request.hosts_total,
        },
    )


def _versioned(name: str, version: str, data: model.Json) -> model.Json:
    return {
        'nova_object.name': name,
        'nova_object.namespace': 'nova',
        'nova_object.version': version,
        'nova_object.data': data,
    }
