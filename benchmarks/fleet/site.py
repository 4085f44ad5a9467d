# SPDX-License-Identifier: Apache-2.0
"""A database with a fleet: cells, mapped hosts that are up, and aggregates of them."""

import dataclasses
import uuid
from collections.abc import Iterator, Sequence

import sqlalchemy as sa
from oslo_config import cfg

from benchmarks.fleet.cases import Case
from nova_precache import conf as precache_conf, model
from nova_precache.cells import inventory, models as cell_models
from nova_precache.db.engine import models, schema, session as db_session

CHUNK_ROWS = 1000
FOR_EVER_SECONDS = 10 * 365 * 86400  # simulated computes send no reports


def configure(case: Case, database_url: str, transport_url: str, state_dir: str) -> cfg.ConfigOpts:
    """Return the configuration of the conductor."""
    conf = precache_conf.new([], [])
    conf.set_override('transport_url', transport_url)
    conf.set_override('state_path', state_dir)
    conf.set_override('host', 'conductor')
    conf.set_override('service_down_time', FOR_EVER_SECONDS)
    conf.set_override('connection', database_url, 'database')
    conf.set_override('max_pool_size', case.parallel + 8, 'database')
    conf.set_override('max_overflow', case.parallel + 8, 'database')
    conf.set_override('endpoint_override', 'http://127.0.0.1:9', 'glance')
    conf.set_override('precache_concurrency', case.parallel, 'image_cache')
    return conf


@dataclasses.dataclass(frozen=True)
class Site:
    """The aggregates.

    :ivar fleet: all hosts
    :ivar few: some hosts, for the small request before
    """

    fleet: model.Aggregate
    few: model.Aggregate


def populate(case: Case, database: db_session.Database, transport_url: str) -> Site:
    schema.sync(database)
    stock = inventory.Inventory(database)
    cells = [
        stock.create_cell(f'cell{number}', _of_cell(transport_url, number))
        for number in range(1, case.cells + 1)
    ]
    hosts = [f'compute-{number:05}' for number in range(1, case.hosts + 1)]
    fleet, few = stock.create_aggregate('fleet'), stock.create_aggregate('few')
    database.write(lambda session: _insert_hosts(session, cells, hosts, fleet.id))
    database.write(lambda session: _put_into(session, few.id, hosts[: 2 * case.parallel]))
    return Site(stock.get_aggregate(fleet.id), stock.get_aggregate(few.id))


def _of_cell(transport_url: str, number: int) -> str:
    """Return the URL of a cell: an exchange of its own in memory, the same one on a broker."""
    return f'{transport_url}-cell{number}' if transport_url.startswith('fake:') else transport_url


def _insert_hosts(
    session: sa.orm.Session, cells: Sequence[model.Cell], hosts: Sequence[str], aggregate_id: int
) -> None:
    ids = session.execute(sa.select(cell_models.CellMapping.uuid, cell_models.CellMapping.id))
    id_of = {row.uuid: row.id for row in ids}
    now = db_session.now(session)
    placed = [(host, cells[number % len(cells)].uuid) for number, host in enumerate(hosts)]
    for chunk in _chunks(placed):
        session.execute(
            sa.insert(cell_models.HostMapping),
            [{'host': host, 'cell_id': id_of[cell]} for host, cell in chunk],
        )
        _put_into(session, aggregate_id, [host for host, _ in chunk])
        session.execute(
            sa.insert(models.Agent),
            [
                {
                    'host': host,
                    'agent_id': str(uuid.uuid4()),
                    'cell_uuid': cell,
                    'capabilities': {'supports_cache_image': True},
                    'started_at': now,
                    'seen_at': now,
                }
                for host, cell in chunk
            ],
        )


def _put_into(session: sa.orm.Session, aggregate_id: int, hosts: Sequence[str]) -> None:
    rows = [{'host': host, 'aggregate_id': aggregate_id} for host in hosts]
    session.execute(sa.insert(cell_models.AggregateHost), rows)


def _chunks(rows: Sequence[tuple[str, str]]) -> Iterator[Sequence[tuple[str, str]]]:
    return (rows[start : start + CHUNK_ROWS] for start in range(0, len(rows), CHUNK_ROWS))
