# SPDX-License-Identifier: Apache-2.0
"""GET /v1/services and GET /v1/cells, and the names of cells beside their ids."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import exception, model
from nova_precache.cells import inventory, names
from nova_precache.db import agents, hearing, services
from nova_precache.db.engine import models, session as db_session
from tests.unit.conftest import LONG_AGO

CONDUCTOR = model.ServiceProcess('c-1', model.Binary.CONDUCTOR, 'ctl1', '1.0')


@pytest.fixture
def known(database: db_session.Database) -> services.Services:
    return services.Services(database, 60, 10)


@pytest.fixture
def hears(database: db_session.Database) -> Callable[..., None]:
    """Return a function that records that a cell is heard, or was long ago."""

    def record(cell_uuid: str, *, still: bool = True) -> None:
        hearing.Hearings(database, 30).note([cell_uuid])
        if not still:
            row = models.Hearing
            gone = sa.update(row).where(row.cell_uuid == cell_uuid)
            database.write(lambda session: session.execute(gone.values(until=LONG_AGO)))

    return record


def _cell(api: Any) -> dict[str, Any]:
    [cell] = api.get('/v1/cells').json['cells']
    return dict(cell)


def test_services_shown_in_full(
    api: Any, database: db_session.Database, known: services.Services
) -> None:
    known.report(CONDUCTOR, replaces=True)
    cell = api.inventory.list_cells()[0].uuid
    agents.Agents(database, 60).register(model.Agent('host1', 'agent-1', cell, version='0.9'))

    compute, conductor = api.get('/v1/services').json['services']

    assert conductor.pop('seen_at') >= conductor.pop('started_at')
    assert conductor == {
        'id': 'c-1',
        'binary': 'nova-precache-conductor',
        'host': 'ctl1',
        'cell': None,
        'status': 'up',
        'reason': None,
        'version': '1.0',
    }
    assert (compute['host'], compute['cell'], compute['version']) == ('host1', cell, '0.9')


def test_services_filtered_and_paged(api: Any, known: services.Services) -> None:
    for number in range(3):
        process = model.ServiceProcess(f'c-{number}', model.Binary.CONDUCTOR, f'ctl{number}', '1')
        known.report(process, replaces=False)
    known.stop('c-1')

    first = api.get('/v1/services?limit=2').json

    assert [each['id'] for each in first['services']] == ['c-0', 'c-1']
    second = api.get(first['services_links'][0]['href'].removeprefix('http://api.example:8774'))
    assert [each['id'] for each in second.json['services']] == ['c-2']
    down = api.get('/v1/services?status=down&binary=nova-precache-conductor').json['services']
    assert [(each['id'], each['reason'][:10]) for each in down] == [('c-1', 'stopped at')]
    assert api.get('/v1/services?host=ctl2&status=down').json == {'services': []}


@pytest.mark.parametrize(
    'query', ['binary=nova-compute', 'status=dead', 'marker=nothing', 'host=a%20b', 'cell=1']
)
def test_bad_query_is_refused(api: Any, query: str) -> None:
    response = api.get(f'/v1/services?{query}')

    assert response.status_int == 400
    assert query.partition('=')[0] in response.json['badRequest']['message']


def test_heard_cell_is_up(api: Any, hears: Any, database: db_session.Database) -> None:
    cell = api.inventory.list_cells()[0].uuid
    hears(cell)
    store = agents.Agents(database, 60)
    for host in ('host1', 'host2'):
        store.register(model.Agent(host, f'agent-{host}', cell))
    gone = sa.update(models.Agent).where(models.Agent.host == 'host2').values(seen_at=LONG_AGO)
    database.write(lambda session: session.execute(gone))

    shown = _cell(api)

    assert shown.pop('heard_since').endswith('Z')
    assert shown == {
        'id': cell,
        'name': 'cell1',
        'status': 'up',
        'reason': None,
        'hosts': 2,
        'hosts_up': 1,
    }


def test_unheard_cell_is_down(api: Any, hears: Any, known: services.Services) -> None:
    known.report(CONDUCTOR, replaces=True)
    hears(api.inventory.list_cells()[0].uuid, still=False)

    shown = _cell(api)

    assert (shown['status'], shown['heard_since']) == ('down', None)
    assert shown['reason'] == (
        'no message of its broker has reached a conductor since 2001-01-01T00:00:00Z'
    )


@pytest.mark.parametrize(
    ('is_up', 'reason'),
    [(False, 'no conductor is up'), (True, 'no conductor has connected to its broker yet')],
)
def test_cell_nobody_hears_is_unknown(
    api: Any, known: services.Services, is_up: bool, reason: str
) -> None:
    known.report(CONDUCTOR, replaces=True)
    if not is_up:
        known.stop(CONDUCTOR.id)

    shown = _cell(api)

    assert (shown['status'], shown['reason']) == ('unknown', reason)


@pytest.mark.parametrize(
    ('values', 'status', 'reason'),
    [
        ({'disabled': True}, 'disabled', 'cell cell1 is disabled'),
        (
            {'transport_url': ''},
            'down',
            'cell cell1 cannot be reached: it has no transport URL',
        ),
    ],
)
def test_unusable_cell_says_why(
    api: Any,
    hears: Any,
    database: db_session.Database,
    values: dict[str, Any],
    status: str,
    reason: str,
) -> None:
    hears(api.inventory.list_cells()[0].uuid)
    cells = sa.table('cell_mappings', *(sa.column(name) for name in values))
    database.write(lambda session: session.execute(sa.update(cells).values(**values)))

    shown = _cell(api)

    assert (shown['status'], shown['reason']) == (status, reason)


def test_names_survive_inventory_outage(
    database: db_session.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    stock = inventory.Inventory(database)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    known = names.CellNames(stock, clock=lambda: now[0])
    assert known.load() == {cell.uuid: 'cell1'}

    def away() -> None:
        raise exception.DatabaseUnavailable('it is away')

    monkeypatch.setattr(stock, 'list_cells', away)
    now[0] = 2 * names.KEPT_SECONDS

    assert known.load() == {cell.uuid: 'cell1'}
