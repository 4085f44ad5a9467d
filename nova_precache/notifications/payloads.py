# SPDX-License-Identifier: Apache-2.0
"""The notifications, field by field as Nova serialises its own."""

import dataclasses
import enum
from collections.abc import Mapping

from nova_precache import context, model


class Source(enum.StrEnum):
    """Who a notification says it is from, before the host, whichever process sends it."""

    API = 'nova-api'
    CONDUCTOR = 'nova-conductor'


@dataclasses.dataclass(frozen=True)
class Notification:
    """A notification, and on whose behalf it is sent."""

    phase: model.Phase
    source: Source
    payload: model.Json
    asker: context.RequestContext

    @property
    def event_type(self) -> str:
        return f'aggregate.cache_images.{self.phase}'


def whole_request(
    phase: model.Phase, aggregate: model.Aggregate, asker: context.RequestContext
) -> Notification:
    """The start or the end of a request: an ``AggregatePayload`` 1.1."""
    payload = _versioned(
        'AggregatePayload',
        '1.1',
        {
            'id': aggregate.id,
            'uuid': aggregate.uuid,
            'name': aggregate.name,
            'hosts': list(aggregate.hosts),
            'metadata': dict(aggregate.metadata),
        },
    )
    return Notification(phase, Source.API, payload, asker)


def host_progress(
    request: model.CacheRequest,
    host: str,
    index: int,
    outcomes: Mapping[str, str],
    asker: context.RequestContext,
) -> Notification:
    """The progress of a request by one host: an ``AggregateCachePayload`` 1.0.

    :param index: this host is the index-th that is done, counted from 1
    :param outcomes: image id to final task status
    """
    cached = [image for image, status in outcomes.items() if status in model.TASK_SUCCEEDED]
    payload = _versioned(
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
    return Notification(model.Phase.PROGRESS, Source.CONDUCTOR, payload, asker)


def _versioned(name: str, version: str, data: model.Json) -> model.Json:
    return {
        'nova_object.name': name,
        'nova_object.namespace': 'nova',
        'nova_object.version': version,
        'nova_object.data': data,
    }
