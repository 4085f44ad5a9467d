# SPDX-License-Identifier: Apache-2.0
"""Images of an aggregate: the request to have them cached on its hosts."""

import logging

from nova_precache import exception, model
from nova_precache.api import validation
from nova_precache.api.call import Call, Reply
from nova_precache.api.handlers import aggregates
from nova_precache.api.schemas import images as schemas
from nova_precache.db import requests
from nova_precache.policies import aggregates as policies

LOG = logging.getLogger(__name__)


def create(call: Call) -> Reply:
    """Accept a request; ``Location`` tells where it can be watched."""
    call.require_version(2, 81)
    validation.check_body(call.body, schemas.CACHE)
    call.authorize(policies.IMAGES)
    with aggregates.named(call) as aggregate_id:
        asked = _asked_ids(call)
        aggregate = call.services.inventory.get_aggregate(aggregate_id)
    images = _usable_ids(call, asked)
    request = _accept(call, aggregate, images)
    _wake(call, request)
    return Reply(status=202, headers={'Location': f'{call.base_url}/v1/requests/{request.id}'})


def _asked_ids(call: Call) -> list[str]:
    asked = [image['id'] for image in call.body['cache']]
    if len(set(asked)) != len(asked):
        raise exception.InvalidInput('Duplicate images in request')
    limit = call.settings.max_images_per_request
    if len(asked) > limit:
        raise exception.TooMany('images', len(asked), 'max_images_per_request', limit)
    return asked


def _usable_ids(call: Call, asked: list[str]) -> tuple[str, ...]:
    """Give the images' ids as Glance spells them, which names their files."""
    service = call.services.images_for(call.context)
    found: dict[str, str] = {}
    for spelling in asked:
        image = service.show(spelling)
        if image.status != 'active':
            raise exception.ImageNotUsable(image.id, f'is {image.status}, not active.')
        if image.id in found:
            raise exception.InvalidInput(
                f'Duplicate images in request: {found[image.id]} and {spelling} are the same'
            )
        found[image.id] = spelling
    return tuple(found)


def _accept(call: Call, aggregate: model.Aggregate, images: tuple[str, ...]) -> model.CacheRequest:
    request = call.services.requests.accept(
        requests.NewRequest(
            aggregate=aggregate,
            images=images,
            project_id=call.context.project_id,
            user_id=call.context.user_id,
            is_admin=bool(call.context.is_admin),
            request_id=call.context.request_id,
        )
    )
    LOG.info(
        'Request %s: %d images for the %d hosts of aggregate %d',
        request.id,
        len(images),
        len(aggregate.hosts),
        aggregate.id,
    )
    return request


def _wake(call: Call, request: model.CacheRequest) -> None:
    """Tell the conductors; they look for themselves, so nothing is lost when it fails."""
    try:
        call.services.wake()
    except Exception:
        LOG.warning(
            'Request %s: no conductor could be told; they will find it', request.id, exc_info=True
        )
