# SPDX-License-Identifier: Apache-2.0
"""Pins: images that are kept cached on the hosts of an aggregate."""

import datetime
import logging

from oslo_utils import timeutils, uuidutils

from nova_precache import exception, model
from nova_precache.api import paging, parsing, serializers, times, validation, visibility
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import pins as schemas
from nova_precache.db import pins
from nova_precache.policies import pins as policies

LOG = logging.getLogger(__name__)


def create(req: Request) -> Reply:
    """Create a pin; a conductor finds it and requests its images."""
    validation.check_document(req.body, schemas.CREATE)
    req.authorize(policies.CREATE, {'project_id': req.context.project_id})
    asked = req.body['pin']
    until = _until(asked.get('until'))
    parsing.check_images(req, [parsing.canonical(image_id) for image_id in asked['images']])
    parsing.refuse_unsupported(req)
    aggregate = parsing.find_aggregate(req, asked['aggregate'])
    images = parsing.usable_images(req, asked['images'])
    pin = req.services.pins.create(
        pins.NewPin(
            aggregate=aggregate,
            images=tuple(image.id for image in images),
            until=until,
            description=asked.get('description'),
            project_id=req.context.project_id,
            user_id=req.context.user_id,
            is_admin=bool(req.context.is_admin),
            request_id=req.context.request_id,
        )
    )
    LOG.info('Pin %s: %d images in aggregate %d', pin.id, len(images), aggregate.id)
    location = f'{req.base_url}/v1/pins/{pin.id}'
    return Reply(status=201, body={'pin': _with_coverage(req, pin)}, headers={'Location': location})


def index(req: Request) -> Reply:
    """List the pins, the newest first unless the query says otherwise."""
    page = paging.read(req, schemas.INDEX, schemas.SORT_KEYS, pins.NEWEST.sort)
    project_id = visibility.authorize(req, policies.LIST)
    aggregate = paging.first(req, 'aggregate')
    found = req.services.pins.list(
        project_id=project_id,
        status=paging.first(req, 'status'),
        aggregate=None if aggregate is None else parsing.aggregate_filter(req, aggregate),
        page=page,
    )
    return Reply(body=paging.page(req, '/v1/pins', 'pins', found, _to_json, lambda pin: pin.id))


def show(req: Request) -> Reply:
    project_id = visibility.authorize(req, policies.SHOW)
    pin = req.services.pins.get(_pin_id(req), project_id)
    return Reply(body={'pin': _with_coverage(req, pin)})


def delete(req: Request) -> Reply:
    """End a pin; its images stay until they are old enough for removal."""
    project_id = visibility.authorize(req, policies.DELETE)
    pin_id = _pin_id(req)
    req.services.pins.end(pin_id, f'ended by {req.context.user_id}', project_id)
    LOG.info('Pin %s: ended', pin_id)
    return Reply(status=204)


def _pin_id(req: Request) -> str:
    pin_id = req.path['id']
    if not uuidutils.is_uuid_like(pin_id):
        raise exception.PinNotFound(pin_id)
    return pin_id


def _until(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    until = times.from_text(text)
    if until <= timeutils.utcnow():
        raise exception.InvalidField('until', text, 'It must be later than now.')
    return until


def _with_coverage(req: Request, pin: model.Pin) -> model.Json:
    """Show a pin with the number of its files that are cached, if hosts report inventories."""
    images = [image for image in pin.images if image not in pin.images_gone]
    try:
        hosts = req.services.inventory.get_aggregate(pin.aggregate_id, pin.aggregate_uuid).hosts
    except exception.AggregateNotFound:
        hosts = ()
    cached = len(req.services.caches.present(hosts, images))
    known = None if req.settings.is_stock else cached
    coverage = {'wanted': len(hosts) * len(images), 'cached': known}
    return {**_to_json(pin), 'coverage': coverage}


def _to_json(pin: model.Pin) -> model.Json:
    return {
        'id': pin.id,
        'status': pin.status,
        'reason': pin.reason,
        'aggregate': serializers.aggregate_to_json(pin),
        'images': list(pin.images),
        'images_gone': dict(pin.images_gone),
        'until': times.to_text(pin.until),
        'description': pin.description,
        'project_id': pin.project_id,
        'user_id': pin.user_id,
        'created_at': times.to_text(pin.created_at),
        'checked_at': times.to_text(pin.checked_at),
        'ended_at': times.to_text(pin.ended_at),
    }
