# SPDX-License-Identifier: Apache-2.0
"""Which brokers a conductor serves: the one of each enabled cell, at the URL of now."""

import functools
import types
import uuid
from typing import Any

import pytest

from nova_precache import conf as options
from nova_precache import context, rpc
from nova_precache.cells import models as cell_models
from nova_precache.cells import transports
from nova_precache.conductor import rpcapi, service
from tests.service import wait_until
from tests.unit.conftest import World

CTXT = context.admin_context()
WAIT_SECONDS = 20


class Endpoint(rpc.Endpoint):
    """Tells for which cell it was asked."""

    def __init__(self, cell_uuid: str) -> None:
        self._cell_uuid = cell_uuid

    def cell(self, ctxt: context.RequestContext) -> str:
        return self._cell_uuid


@pytest.fixture
def conf() -> Any:
    return options.new(config_files=[])


@pytest.fixture
def conductor(world: World, conf: Any) -> service.Conductor:
    connect = functools.partial(rpc.connect, conf)
    nothing: Any = types.SimpleNamespace(write_progress=None, write_states=None)
    return service.Conductor(
        conductor_id=str(uuid.uuid4()),
        dispatch=nothing,
        announce=nothing,
        reports=nothing,
        job_store=world.jobs,
        api_transport=connect('fake:///api'),
        cell_transports=transports.CellTransports(world.inventory, connect),
        cell_endpoint=Endpoint,  # type: ignore[arg-type]
        periods=service.Periods(60, 60, 60, 60, purge=lambda: None),
    )


def _move(world: World, **values: object) -> None:
    this = cell_models.CellMapping.uuid == world.cell.uuid
    world.change(cell_models.CellMapping, this, **values)


def _answers(conf: Any, url: str) -> str | None:
    client = rpc.connect(conf, url).client(rpcapi.TOPIC)
    try:
        return str(client.call(CTXT, 'cell', '1.0', timeout_seconds=0.5))
    except TimeoutError:
        return None


def test_a_cell_whose_url_changes_is_served_there_and_no_longer_where_it_was(
    world: World, conductor: service.Conductor, conf: Any
) -> None:
    old, new = (f'fake:///{uuid.uuid4().hex}' for _ in range(2))
    _move(world, transport_url=old)
    conductor.serve_cells()
    wait_until(lambda: _answers(conf, old) == world.cell.uuid, 'the cell is served')

    _move(world, transport_url=new)
    conductor.serve_cells()

    wait_until(lambda: _answers(conf, new) == world.cell.uuid, 'the cell is served anew')
    wait_until(lambda: _answers(conf, old) is None, 'the old broker is left')


def test_a_disabled_cell_is_no_longer_served_and_an_enabled_one_again(
    world: World, conductor: service.Conductor, conf: Any
) -> None:
    url = f'fake:///{uuid.uuid4().hex}'
    _move(world, transport_url=url)
    conductor.serve_cells()
    wait_until(lambda: _answers(conf, url) == world.cell.uuid, 'the cell is served')

    _move(world, disabled=True)
    conductor.serve_cells()
    wait_until(lambda: _answers(conf, url) is None, 'the cell is left')
    _move(world, disabled=False)
    conductor.serve_cells()

    wait_until(lambda: _answers(conf, url) == world.cell.uuid, 'the cell is served again')
