# SPDX-License-Identifier: Apache-2.0
"""Hosts, the images in their caches, and the hosts that have an image."""

import datetime
import urllib.parse
from collections.abc import Callable, Collection, Mapping

from oslo_utils import timeutils, uuidutils

from nova_precache import exception, model, shown
from nova_precache.api import paging, parsing, times
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import hosts as schemas
from nova_precache.cache import layout
from nova_precache.policies import aggregates as aggregate_policies, hosts as policies

_UUID_LENGTH = 36  # other spellings than the canonical one name another file


def index(req: Request) -> Reply:
    """List the hosts, by name unless the query says otherwise."""
    page = paging.read(req, schemas.INDEX, schemas.SORT_KEYS)
    req.authorize(policies.LIST)
    status, cell = paging.first(req, 'status'), paging.first(req, 'cell')
    found = req.services.agents.list_page(
        page,
        status=None if status is None else model.HostStatus(status),
        cell_uuid=None if cell is None else parsing.canonical(cell),
        hosts=_of_aggregate(req),
    )
    cells = req.services.cell_names.load()
    body = paging.page(
        req,
        '/v1/hosts',
        'hosts',
        found,
        lambda host: _host_to_json(host, cells),
        marker_of=lambda host: host.agent.host,
    )
    return Reply(body=body)


def show(req: Request) -> Reply:
    req.authorize(policies.SHOW)
    name = req.path['host']
    host = req.services.agents.look([name]).get(name)
    if host is None:
        raise exception.ComputeHostNotFound(shown.value(name))
    return Reply(body={'host': _host_to_json(host, req.services.cell_names.load())})


def images(req: Request) -> Reply:
    """List the images in the cache of a host, by file name unless the query says otherwise."""
    page = paging.read(req, schemas.IMAGES, schemas.SORT_IMAGES)
    req.authorize(policies.IMAGES)
    host = _known(req)
    aggregates = req.services.inventory.aggregates_of_hosts([host])
    with req.services.snapshot():
        found = req.services.caches.of_host(host, page)
        pinned = _pinned_in(req, aggregates)
    to_age = _ages()

    def image_of(cached: model.CachedImage) -> str | None:
        if not req.context.is_admin:
            return None  # It may be a private one of another project.
        return cached.image_id or pinned.get(_image_name(cached))

    body = paging.page(
        req,
        f'/v1/hosts/{urllib.parse.quote(host, safe="")}/images',
        'images',
        found,
        lambda cached: {
            'name': cached.name,
            'image_id': image_of(cached),
            **_file_to_json(cached, to_age),
            'pinned': _image_name(cached) in pinned,
        },
        marker_of=lambda cached: cached.name,
    )
    return Reply(body=body)


def remove(req: Request) -> Reply:
    """Remove an image from the cache of a host, unless it is used or pinned there."""
    req.authorize(policies.REMOVE_IMAGE)
    host, image_id = req.path['host'], req.path['image_id']
    if not uuidutils.is_uuid_like(image_id) or len(image_id) != _UUID_LENGTH:
        raise _image_not_found(image_id)
    known = req.services.agents.look([host]).get(host)
    if known is None:
        raise exception.ComputeHostNotFound(host)
    if known.status is not model.HostStatus.UP:
        # An unknown one may be up, and cannot be called now.
        is_down = known.status is model.HostStatus.DOWN
        kind = exception.RemovalRefused if is_down else exception.NoAnswer
        raise kind(f'Host {host} is {known.status}: {known.reason}')
    removal = req.services.remove(req.context, host, image_id)
    body = {
        'host': host,
        'image_id': image_id,
        'status': removal.status,
        'reason': removal.reason,
        'freed_bytes': removal.freed_bytes,
    }
    return Reply(body={'removal': body})


def of_image(req: Request) -> Reply:
    """List the hosts that have an image in their cache, by name unless the query differs."""
    page = paging.read(req, schemas.IMAGE_HOSTS, schemas.SORT_IMAGE_HOSTS)
    req.authorize(policies.IMAGE_HOSTS)
    image_id = req.path['id']
    if not uuidutils.is_uuid_like(image_id):
        raise _image_not_found(image_id)
    if not req.context.is_admin:
        _check_visible(req, image_id)
    hosts = _of_aggregate(req)
    with req.services.snapshot():
        found = req.services.caches.hosts_of(image_id, page, hosts)
        agents = req.services.agents.get([cached.host for cached in found])
    to_age = _ages()
    cells = req.services.cell_names.load()

    def cell_of(host: str) -> str | None:
        return agents[host].cell_uuid if host in agents else None

    body = paging.page(
        req,
        f'/v1/images/{image_id}/hosts',
        'hosts',
        found,
        lambda cached: {
            'host': cached.host,
            'cell': cell_of(cached.host),
            'cell_name': cells.get(cell_of(cached.host) or ''),
            **_file_to_json(cached, to_age),
        },
        marker_of=lambda cached: cached.host,
    )
    return Reply(body=body)


def _check_visible(req: Request, image_id: str) -> None:
    """Check that the image is visible to the caller.

    :raises nova_precache.exception.NotFound: it is not
    """
    try:
        req.services.images_for(req.context).show(image_id)
    except exception.ImageNotUsable as error:
        raise _image_not_found(image_id) from error


def _image_not_found(image_id: str) -> exception.NotFound:
    return exception.NotFound(f'Image {shown.value(image_id)} could not be found.')


def _of_aggregate(req: Request) -> Collection[str] | None:
    """Return the hosts of the aggregate that the query names; None without one."""
    asked = paging.first(req, 'aggregate')
    if asked is None:
        return None
    req.authorize(aggregate_policies.INDEX)
    try:
        return parsing.find_aggregate(req, asked).hosts
    except exception.AggregateNotFound as error:
        raise parsing.bad_aggregate(asked, error) from error


def _known(req: Request) -> str:
    host = req.path['host']
    if host not in req.services.agents.get([host]):
        raise exception.ComputeHostNotFound(shown.value(host))
    return host


def _pinned_in(req: Request, aggregates: Collection[int]) -> Mapping[str, str]:
    """Map the file names of the images that pins keep in the aggregates to the image ids."""
    pinned = req.services.pins.pinned_images(aggregates)
    return {layout.base_name(image): image for images in pinned.values() for image in images}


def _image_name(cached: model.CachedImage) -> str:
    """Return the base name of the image's file, without the suffix of a resized one."""
    return cached.name.partition('_')[0]


def _ages() -> Callable[[datetime.datetime], int]:
    """Return a function that computes ages, with the same current time for a whole page."""
    now = timeutils.utcnow()
    return lambda touched: max(0, int((now - touched).total_seconds()))


def _host_to_json(host: model.Host, cells: Mapping[str, str]) -> model.Json:
    agent = host.agent
    return {
        'host': agent.host,
        'cell': agent.cell_uuid,
        'cell_name': cells.get(agent.cell_uuid),
        'status': host.status,
        'reason': host.reason,
        'seen_at': times.to_text(agent.seen_at),
        'version': agent.version,
        'driver': agent.driver,
        'store_id': agent.store_id,
        'cache_bytes': agent.cache_bytes,
        'free_bytes': agent.free_bytes,
    }


def _file_to_json(
    cached: model.CachedImage, to_age: Callable[[datetime.datetime], int]
) -> model.Json:
    return {
        'size_bytes': cached.size_bytes,
        'disk_bytes': cached.disk_bytes,
        'touched_at': times.to_text(cached.touched_at),
        'age_seconds': to_age(cached.touched_at),
        'used_by': cached.used_by,
    }
