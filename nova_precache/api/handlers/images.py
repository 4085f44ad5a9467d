# SPDX-License-Identifier: Apache-2.0
"""Images of an aggregate: the request to cache them on its hosts."""

from nova_precache.api import parsing, validation
from nova_precache.api.handlers import aggregates, requests
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import aggregates as schemas
from nova_precache.policies import aggregates as policies


def create(req: Request) -> Reply:
    """Accept a request; ``Location`` is the URL to follow it."""
    validation.check_body(req.body, schemas.CACHE)
    req.authorize(policies.IMAGES)
    with aggregates.resolve_aggregate_id(req) as aggregate_id:
        asked = [image['id'] for image in req.body['cache']]
        parsing.check_images(req, asked)
        aggregate = req.services.inventory.get_aggregate(aggregate_id)
    images = tuple(image.id for image in parsing.usable_images(req, asked))
    request = requests.accept(req, aggregate=aggregate, images=images)
    return Reply(status=202, headers={'Location': requests.url(req, request)})
