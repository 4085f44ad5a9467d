# SPDX-License-Identifier: Apache-2.0
"""The services and the cells of the deployment."""

from nova_precache import model
from nova_precache.api import cell_states, paging, times, validation
from nova_precache.api.request import Reply, Request
from nova_precache.api.schemas import services as schemas
from nova_precache.db import hearing, statistics
from nova_precache.policies import services as policies

_NO_HOSTS = statistics.HostCount(up=0, down=0)


def index(req: Request) -> Reply:
    """List the services by binary, host and id."""
    validation.check_query(req.query, schemas.INDEX)
    req.authorize(policies.LIST)
    status, marker = paging.first(req, 'status'), paging.first(req, 'marker')
    found = req.services.services.list_page(
        limit=paging.limit(req) + 1,
        marker=marker,
        binary=paging.first(req, 'binary'),
        host=paging.first(req, 'host'),
        status=None if status is None else model.HostStatus(status),
    )
    body = paging.page(
        req, '/v1/services', 'services', found, _service_to_json, lambda service: service.id
    )
    return Reply(body=body)


def cells(req: Request) -> Reply:
    """List the cells, the oldest first."""
    validation.check_query(req.query, schemas.CELLS)
    req.authorize(policies.LIST_CELLS)
    services = req.services
    heard = services.hearings.load()
    hosts = services.count_hosts()
    conductors = services.services.list_page(
        limit=1, binary=model.Binary.CONDUCTOR, status=model.HostStatus.UP
    )
    found = [
        _cell_to_json(cell, heard, hosts.get(cell.uuid, _NO_HOSTS), bool(conductors))
        for cell in services.inventory.list_cells()
    ]
    return Reply(body={'cells': found})


def _service_to_json(service: model.Service) -> model.Json:
    return {
        'id': service.id,
        'binary': service.binary,
        'host': service.host,
        'cell': service.cell_uuid,
        'status': service.status,
        'reason': service.reason,
        'version': service.version,
        'started_at': times.to_text(service.started_at),
        'seen_at': times.to_text(service.seen_at),
    }


def _cell_to_json(
    cell: model.Cell,
    hearings: hearing.AllHeard,
    hosts: statistics.HostCount,
    has_conductor: bool,
) -> model.Json:
    heard = hearings.cells.get(cell.uuid)
    status, reason = cell_states.judge(cell, heard, hearings.now, has_conductor=has_conductor)
    is_up = heard is not None and status is model.CellStatus.UP
    return {
        'id': cell.uuid,
        'name': cell.name or None,
        'status': status,
        'reason': reason,
        'hosts': hosts.up + hosts.down + hosts.unknown,
        'hosts_up': hosts.up,
        'heard_since': times.to_text(heard.since) if heard is not None and is_up else None,
    }
