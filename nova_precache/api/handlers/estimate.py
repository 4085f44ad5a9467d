# SPDX-License-Identifier: Apache-2.0
"""Estimates of requests; nothing is saved or started."""

from collections.abc import Mapping

from nova_precache import exception, model
from nova_precache.api import estimator, paging, parsing, serializers, validation
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import requests as schemas
from nova_precache.conductor import planner
from nova_precache.db import caches
from nova_precache.policies import estimate as policies

PATH = '/v1/estimate'


def create(req: Request) -> Reply:
    """Estimate the request in the body; the hosts are paged, in the order of the plan."""
    validation.check_query(req.query, schemas.ESTIMATE_QUERY)
    validation.check_document(req.body, schemas.CREATE)
    req.authorize(policies.ESTIMATE, {'project_id': req.context.project_id})
    asked = parsing.read(req, req.body['request'])
    rules = estimator.EstimateRules(
        force_raw_images=req.settings.force_raw_images,
        reserved_disk_bytes=req.settings.reserved_disk_bytes,
        precache_concurrency=req.settings.precache_concurrency(),
    )
    estimate = estimator.estimate(asked.images, asked.options, _facts(req, asked), rules)
    return Reply(body=_to_json(req, estimate))


def _facts(req: Request, asked: parsing.RequestBody) -> estimator.FleetFacts:
    services, hosts = req.services, asked.hosts
    agents = services.agents.get(hosts)
    known_hosts = frozenset(services.caches.known_hosts())
    part_ids = [part.id for image in asked.images for part in image.parts]
    # If none of these hosts has a measured rate, use the rates of other hosts.
    rates = services.rates.measured_rates(hosts) or services.rates.measured_rates(known_hosts)
    return estimator.FleetFacts(
        hosts=planner.host_facts(
            hosts,
            services.inventory.cell_of_hosts(hosts),
            services.inventory.list_cells(),
            services.agents.down(hosts),
            agents=agents,
        ),
        agents=agents,
        present=caches.usable_parts(services.caches.present(hosts, part_ids), asked.images).keys(),
        known_hosts=known_hosts,
        rates=rates,
    )


def _to_json(req: Request, estimate: estimator.Estimate) -> model.Json:
    found, cells = _from_marker(req, estimate.hosts), req.services.cell_names.load()
    page = paging.page(
        req, PATH, 'hosts', found, lambda host: _host_to_json(host, cells), lambda host: host.host
    )
    return {
        'estimate': {
            'hosts': page.pop('hosts'),
            'totals': _totals_to_json(estimate),
            'glance': {
                'bytes': estimate.bytes_to_move,
                'parallel_downloads': estimate.parallel_hosts,
                'rate_bytes': serializers.round_up(estimate.rate_bytes),
            },
        },
        **page,
    }


def _from_marker(
    req: Request, hosts: tuple[estimator.HostEstimate, ...]
) -> tuple[estimator.HostEstimate, ...]:
    marker = paging.first(req, 'marker')
    if marker is None:
        return hosts
    names = [host.host for host in hosts]
    if marker not in names:
        raise exception.InvalidMarker(marker)
    return hosts[names.index(marker) + 1 :]


def _totals_to_json(estimate: estimator.Estimate) -> model.Json:
    hosts = estimate.hosts
    return {
        'hosts': len(hosts),
        'hosts_down': sum(host.status != estimator.HostReach.UP for host in hosts),
        'tasks': sum(len(host.images) for host in hosts),
        'tasks_cached': estimate.count(estimator.ImageState.CACHED),
        'bytes_to_move': estimate.bytes_to_move,
        'space_needed_bytes': estimate.space_needed_bytes,
        'parallel_hosts': estimate.parallel_hosts,
        'seconds': serializers.round_up(estimate.seconds),
    }


def _host_to_json(host: estimator.HostEstimate, cells: Mapping[str, str]) -> model.Json:
    return {
        'host': host.host,
        'cell': host.cell_uuid,
        'cell_name': cells.get(host.cell_uuid or ''),
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
        'rate_bytes': serializers.round_up(host.rate_bytes),
        'seconds': serializers.round_up(host.seconds),
    }
