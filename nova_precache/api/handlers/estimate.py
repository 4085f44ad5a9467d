# SPDX-License-Identifier: Apache-2.0
"""The estimate: what a request would come to, of which nothing is begun or saved."""

import math

from nova_precache import exception, model
from nova_precache.api import asking, estimating, paging, validation
from nova_precache.api.call import Call, Reply
from nova_precache.api.schemas import requests as schemas
from nova_precache.db import caches
from nova_precache.policies import estimate as policies

PATH = '/v1/estimate'


def create(call: Call) -> Reply:
    """Estimate the request of the body; the hosts come in pages, in the order of its plan."""
    validation.check_query(call.query, schemas.ESTIMATE_QUERY)
    validation.check_document(call.body, schemas.CREATE)
    call.authorize(policies.ESTIMATE, {'project_id': call.context.project_id})
    asked = asking.read(call, call.body['request'])
    rules = estimating.Rules(
        force_raw_images=call.settings.force_raw_images,
        reserved_disk_bytes=call.settings.reserved_disk_bytes,
        precache_concurrency=call.settings.precache_concurrency(),
    )
    estimate = estimating.estimate(asked.images, asked.options, _facts(call, asked), rules)
    return Reply(body=_to_json(call, estimate))


def _facts(call: Call, asked: asking.Asked) -> estimating.Facts:
    services, hosts = call.services, asked.hosts
    known_hosts = frozenset(services.caches.known_hosts())
    part_ids = [part.id for image in asked.images for part in image.parts]
    # Where none of them ever did anything, what is usual elsewhere has to do.
    rates = services.rates.measured_rates(hosts) or services.rates.measured_rates(known_hosts)
    return estimating.Facts(
        hosts=hosts,
        cells=services.inventory.cell_of_hosts(hosts),
        cells_off={
            cell.uuid: why
            for cell in services.inventory.list_cells()
            if (why := cell.why_off) is not None
        },
        down=services.agents.down(hosts),
        agents=services.agents.get(hosts),
        present=caches.usable_parts(services.caches.present(hosts, part_ids), asked.images).keys(),
        known_hosts=known_hosts,
        rates=rates,
    )


def _to_json(call: Call, estimate: estimating.Estimate) -> model.Json:
    found = _from_marker(call, estimate.hosts)
    page = paging.page(call, PATH, 'hosts', found, _host_to_json, lambda host: host.host)
    return {
        'estimate': {
            'hosts': page.pop('hosts'),
            'totals': _totals_to_json(estimate),
            'glance': {
                'bytes': estimate.bytes_to_move,
                'parallel_downloads': estimate.parallel_hosts,
                'rate_bytes': _whole(estimate.rate_bytes),
            },
        },
        **page,
    }


def _from_marker(
    call: Call, hosts: tuple[estimating.HostEstimate, ...]
) -> tuple[estimating.HostEstimate, ...]:
    marker = paging.first(call, 'marker')
    if marker is None:
        return hosts
    names = [host.host for host in hosts]
    if marker not in names:
        raise paging.bad_marker(marker, exception.ComputeHostNotFound(marker))
    return hosts[names.index(marker) + 1 :]


def _totals_to_json(estimate: estimating.Estimate) -> model.Json:
    hosts = estimate.hosts
    return {
        'hosts': len(hosts),
        'hosts_down': sum(host.status != estimating.HostStatus.UP for host in hosts),
        'tasks': sum(len(host.images) for host in hosts),
        'tasks_cached': estimate.count(estimating.ImageState.CACHED),
        'bytes_to_move': estimate.bytes_to_move,
        'space_needed_bytes': estimate.space_needed_bytes,
        'parallel_hosts': estimate.parallel_hosts,
        'seconds': _whole(estimate.seconds),
    }


def _host_to_json(host: estimating.HostEstimate) -> model.Json:
    return {
        'host': host.host,
        'cell': host.cell_uuid,
        'status': host.status,
        'reason': host.reason,
        'images': [
            {
                'image_id': image.image_id,
                'state': image.state,
                'bytes_to_move': image.bytes_to_move,
                'space_needed_bytes': image.space_needed_bytes,
            }
            for image in host.images
        ],
        'bytes_to_move': host.bytes_to_move,
        'space_needed_bytes': host.space_needed_bytes,
        'free_bytes': host.free_bytes,
        'fits': host.fits,
        'rate_bytes': _whole(host.rate_bytes),
        'seconds': _whole(host.seconds),
    }


def _whole(value: float | None) -> int | None:
    return None if value is None else math.ceil(value)
