# SPDX-License-Identifier: Apache-2.0
"""Images of an aggregate: the request to have them cached on its hosts."""

from nova_precache.api import asking, validation
from nova_precache.api.call import Call, Reply
from nova_precache.api.handlers import aggregates, requests
from nova_precache.api.schemas import images as schemas
from nova_precache.policies import aggregates as policies


def create(call: Call) -> Reply:
    """Accept a request; ``Location`` tells where it can be watched."""
    call.require_version(2, 81)
    validation.check_body(call.body, schemas.CACHE)
    call.authorize(policies.IMAGES)
    with aggregates.named(call) as aggregate_id:
        asked = [image['id'] for image in call.body['cache']]
        asking.check_images(call, asked)
        aggregate = call.services.inventory.get_aggregate(aggregate_id)
    images = tuple(image.id for image in asking.usable_images(call, asked))
    request = requests.accept(call, aggregate=aggregate, images=images)
    return Reply(status=202, headers={'Location': requests.url(call, request)})
