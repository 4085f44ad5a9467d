# SPDX-License-Identifier: Apache-2.0
"""A fleet and its conductor: cells, mapped hosts that are up, aggregates, and requests for them."""

import contextlib
import dataclasses
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import sqlalchemy as sa
from oslo_config import cfg

from benchmarks.fleet.cases import Case
from benchmarks.fleet.computes import IMAGE_BYTES, Images, SimulatedComputes
from nova_precache import conf as precache_conf, context, model
from nova_precache.cells import inventory, models as cell_models
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.db import requests
from nova_precache.db.engine import models, schema, session as db_session
from nova_precache.wiring import conductor as wiring_conductor, process as wiring_process

CHUNK_ROWS = 1000
FOR_EVER_SECONDS = 10 * 365 * 86400  # simulated computes send no reports
IN_MEMORY = 'fake:///fleet'
MOST_CONNECTIONS = 128  # of the database; its server allows 151
LOOK_SECONDS = 0.05
NEVER_ENDS_SECONDS = 3600.0


def configure(case: Case, database_url: str, transport_url: str, state_dir: str) -> cfg.ConfigOpts:
    """Return the configuration of the conductor."""
    conf = precache_conf.new([], [])
    conf.set_override('transport_url', transport_url)
    conf.set_override('state_path', state_dir)
    conf.set_override('host', 'conductor')
    conf.set_override('service_down_time', FOR_EVER_SECONDS)
    conf.set_override('connection', database_url, 'database')
    connections = min(case.parallel + 8, MOST_CONNECTIONS // 2)
    conf.set_override('max_pool_size', connections, 'database')
    conf.set_override('max_overflow', connections, 'database')
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


class World:
    """A fleet in a database, and the parts of the conductor that serves it.

    :ivar hosts: all hosts; those of a cell are as many apart as there are cells
    """

    def __init__(self, parts: wiring_conductor.ConductorParts, site: Site) -> None:
        self.parts = parts
        self.site = site
        self.hosts = site.fleet.hosts
        self.images = parts.images = Images()

    def simulate(self, computes: SimulatedComputes) -> None:
        self.parts.computes = lambda cell_uuid: computes

    def new_request(
        self,
        images: int,
        aggregate: model.Aggregate | None = None,
        hosts: Sequence[str] | None = None,
        priority: int = 0,
        image_bytes: int = IMAGE_BYTES,
    ) -> requests.NewRequest:
        """Make a request for new images, by an aggregate or by named hosts."""
        ids = tuple(self.images.add(b'', size=image_bytes).id for _ in range(images))
        named = None if hosts is None else tuple(hosts)
        return requests.NewRequest(
            aggregate=aggregate, hosts=named, images=ids, is_admin=True, priority=priority
        )

    def ask(self, new: requests.NewRequest) -> model.CacheRequest:
        """Accept a request and wake the conductor, as the API does."""
        request = self.parts.requests.accept(new)
        transport = self.parts.api_transport
        conductor_rpcapi.ConductorAPI(transport).work_available(context.admin_context())
        return request

    @contextlib.contextmanager
    def conducting(self) -> Iterator[None]:
        """Run the conductor, with all of its loops."""
        conductor = self.parts.conductor()
        conductor.start()
        try:
            yield
        finally:
            conductor.stop()


@contextlib.contextmanager
def opened(case: Case, database_url: str, transport_url: str = IN_MEMORY) -> Iterator[World]:
    """Fill an empty database with the fleet of a case."""
    with tempfile.TemporaryDirectory(prefix='fleet-') as state_dir:
        conf = configure(case, database_url, transport_url, state_dir)
        database = db_session.connect(conf)
        try:
            site = populate(case, database, transport_url)
            yield World(
                wiring_conductor.ConductorParts(conf, database, wiring_process.exposition(conf)),
                site,
            )
        finally:
            database.dispose()


class StatusPoll:
    """Polls the status of a request through a connection that is not counted."""

    def __init__(self, database: db_session.Database, request_id: str) -> None:
        self._engine = sa.create_engine(database.engine.url)
        row = models.CacheRequest
        self._query = sa.select(row.status).where(row.id == request_id)

    def until(self, is_so: Callable[[str], bool]) -> None:
        give_up_at = time.monotonic() + NEVER_ENDS_SECONDS
        while True:
            with self._engine.connect() as connection:
                if is_so(connection.scalars(self._query).one()):
                    return
            if time.monotonic() > give_up_at:
                raise RuntimeError('The request did not end in time')
            time.sleep(LOOK_SECONDS)

    def until_planned(self) -> None:
        self.until(lambda status: status != model.RequestStatus.ACCEPTED)

    def until_ended(self) -> None:
        self.until(lambda status: status not in model.REQUEST_ACTIVE)

    def close(self) -> None:
        self._engine.dispose()


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
