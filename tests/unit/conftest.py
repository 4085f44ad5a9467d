# SPDX-License-Identifier: Apache-2.0
"""A real database for each test, and helpers for common steps."""

import dataclasses
import datetime
import logging
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import conf as options, model, outages
from nova_precache.cells import inventory
from nova_precache.db import agents, hearing, jobs as db_jobs, request_actions, requests
from nova_precache.db.engine import models, schema, session
from nova_precache.db.job import claim as job_claim
from nova_precache.db.request import plan as request_plan
from tests import unclosed
from tools.waiting import TIMEOUT_SECONDS

LIMITS = requests.RequestLimits(
    max_images_per_request=3,
    max_tasks_per_request=5000,
    max_active_requests_per_project=100,
)
LEASE_SECONDS = 30
DOWN_SECONDS = 60
GAP_SECONDS = 15
PLANNER = 'planner'
LONG_AGO = datetime.datetime(2001, 1, 1)  # noqa: DTZ001 - as the database keeps it
CACHED = model.ImageOutcome(model.TaskStatus.CACHED, bytes_done=100, bytes_total=100)
BROKEN = model.ImageOutcome(model.TaskStatus.ERROR, 'the line is dead', model.Retry.BACKOFF)


@pytest.fixture(autouse=True)
def closed_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail a test that leaves a database open, or that runs a command that does."""
    base = tmp_path_factory.getbasetemp()
    before = unclosed.databases(base)
    yield
    assert unclosed.databases(base) - before == {}


@dataclasses.dataclass
class World:
    """The stores on one database, with one cell."""

    database: session.Database
    inventory: inventory.Inventory
    requests: requests.Requests
    jobs: db_jobs.Jobs
    steering: request_actions.RequestActions
    agents: agents.Agents
    hearings: hearing.Hearings
    cell: model.Cell
    first: dict[tuple[str, str], db_jobs.Assignment | None] = dataclasses.field(
        default_factory=dict
    )

    def aggregate(self, hosts: Sequence[str], cell: model.Cell | None = None) -> model.Aggregate:
        """Make an aggregate of living hosts."""
        made = self.inventory.create_aggregate(f'aggregate-{"-".join(hosts)}')
        for host in hosts:
            self.living(host, cell)
            made = self.inventory.add_host(made.id, host)
        return made

    def living(self, host: str, cell: model.Cell | None = None) -> None:
        """Add a host with an agent that has just reported."""
        cell_uuid = (cell or self.cell).uuid
        self.inventory.map_host(host, cell_uuid)
        self.agents.register(model.Agent(host, f'agent-{host}', cell_uuid))

    def dead(self, host: str) -> None:
        """Set the last report of a host's agent long into the past."""
        self.change(models.Agent, models.Agent.host == host, seen_at=LONG_AGO)

    def stopped(self, host: str) -> None:
        """Register a host's agent, and let it stop cleanly."""
        self.living(host)
        self.agents.stop(host, f'agent-{host}', self.cell.uuid, None)

    def pass_time(self, seconds: float) -> None:
        """Move all records of agents and of heard cells this far into the past."""
        for table, names in ((models.Agent, ['seen_at']), (models.Hearing, ['since', 'until'])):
            with self.database.reader() as reader:
                rows = reader.scalars(sa.select(table)).all()
            for row in rows:
                key = sa.inspect(table).primary_key[0]
                earlier = datetime.timedelta(seconds=seconds)
                values = {name: getattr(row, name) - earlier for name in names}
                self.change(table, key == getattr(row, key.name), **values)

    def hears(self, *cell_uuids: str, for_seconds: float = 0) -> None:
        """Record that conductors have heard cells, for this long; by default the world's cell."""
        cells = cell_uuids or (self.cell.uuid,)
        self.hearings.note(cells)
        with self.database.reader() as reader:
            since = session.now(reader) - datetime.timedelta(seconds=for_seconds)
        self.change(models.Hearing, models.Hearing.cell_uuid.in_(cells), since=since)

    def accept(
        self, hosts: Sequence[str], images: Sequence[str], **fields: Any
    ) -> model.CacheRequest:
        """Save a request for an aggregate that only the request knows."""
        aggregate = model.Aggregate(1, 'uuid-1', 'edge', tuple(hosts))
        return self.requests.accept(
            requests.NewRequest(**{'aggregate': aggregate, 'images': tuple(images), **fields})
        )

    def plan(
        self,
        request: model.CacheRequest,
        hosts: Sequence[str],
        cell_uuid: str | None = None,
        images: Sequence[str] | None = None,
    ) -> bool:
        """Write a part of a plan; every task of it is queued."""
        return self.requests.add_tasks(
            request.id,
            PLANNER,
            [
                request_plan.PlannedTask(host, cell_uuid or self.cell.uuid, image, bytes_total=100)
                for host in hosts
                for image in images or request.images
            ],
        )

    def planned(
        self,
        hosts: Sequence[str],
        images: Sequence[str],
        cell_uuid: str | None = None,
        **fields: Any,
    ) -> model.CacheRequest:
        """Save a request and plan it; no other request may wait to be planned."""
        request = self.accept(hosts, images, **fields)
        taken = self.requests.next_to_plan(PLANNER)
        assert taken is not None
        assert taken.request.id == request.id
        assert self.plan(request, hosts, cell_uuid)
        assert self.requests.mark_planned(request.id, PLANNER)
        return self.requests.get(request.id)

    def claim(
        self, conductor: str, limit: int, avoid_cells: Collection[str] = ()
    ) -> job_claim.Claim | None:
        """Claim the host of the most urgent job; :meth:`assign` returns the job."""
        for each in self.jobs.claim_hosts(conductor, limit, avoid_cells):
            self.first[conductor, each.claim.host] = each.first
            return each.claim
        return None

    def held_by(self, conductor: str) -> list[str]:
        """List the hosts that a conductor has claimed."""
        return [claim.host for claim in self.jobs.claims(conductor)]

    def assign(self, conductor: str, host: str) -> db_jobs.Assignment | None:
        """Return the host's next job, from its claim or from the database."""
        return (
            self.first.pop((conductor, host), None)
            or self.jobs.next_job(conductor, host).assignment
        )

    def begun(self, conductor: str = 'c1') -> db_jobs.Assignment:
        """Claim a host, assign a job and let the compute begin it."""
        claim = self.claim(conductor, limit=100)
        assert claim is not None
        assigned = self.assign(conductor, claim.host)
        assert assigned is not None
        assert self.jobs.begin(assigned.job_id, assigned.epoch)
        return assigned

    def job(self, job_id: str) -> models.Job:
        with self.database.reader() as reader:
            return reader.scalars(sa.select(models.Job).where(models.Job.uuid == job_id)).one()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until a query of the database is true."""
        pause = threading.Event()
        for _ in range(TIMEOUT_SECONDS * 50):
            if condition():
                return
            pause.wait(0.02)
        raise AssertionError('it did not become so')

    def depth(self) -> int:
        """Count the jobs in flight."""
        return sum(job.status in model.TASK_IN_FLIGHT for job in self.all_jobs())

    def all_jobs(self) -> Sequence[models.Job]:
        with self.database.reader() as reader:
            return reader.scalars(sa.select(models.Job).order_by(models.Job.id)).all()

    def claimed(self) -> int:
        """Return the counter that the limit is compared with."""
        with self.database.reader() as reader:
            row = reader.get(models.Counter, job_claim.CLAIMED_HOSTS)
            assert row is not None
            return row.value

    def tasks(self, request: model.CacheRequest) -> dict[tuple[str, str], model.Task]:
        """Return the tasks of a request by host and image."""
        return {(t.host, t.image_id): t for t in self.requests.tasks(request.id)}

    def statuses(self, request: model.CacheRequest) -> dict[tuple[str, str], str]:
        return {key: task.status for key, task in self.tasks(request).items()}

    def status(self, request: model.CacheRequest) -> str:
        return self.requests.get(request.id).status

    def to_announce(self, request: model.CacheRequest) -> list[str]:
        """Return the pending announcements of a request: phases, and hosts for their progress."""
        row = models.Announcement
        query = sa.select(row).where(row.request_id == request.id).order_by(row.position)
        with self.database.reader() as reader:
            return [due.host or due.phase for due in reader.scalars(query)]

    def announced(self, request: model.CacheRequest) -> list[tuple[int, str, int | None]]:
        """Return the same with their positions, and the indexes of hosts."""
        row = models.Announcement
        query = sa.select(row).where(row.request_id == request.id).order_by(row.position)
        with self.database.reader() as reader:
            rows = reader.scalars(query).all()
        return [(due.position, due.host or due.phase, due.host_index) for due in rows]

    def expire(self, host: str) -> None:
        """Expire the lease of a host's claim."""
        self.change(models.Claim, models.Claim.host == host, lease_expires_at=LONG_AGO)

    def make_due(self) -> None:
        """Make every job due that waits for its next attempt."""
        waits = models.Job.next_attempt_at.is_not(None)
        self.change(models.Job, waits, next_attempt_at=LONG_AGO)

    def change(self, table: type[Any], which: sa.ColumnElement[bool], **values: Any) -> None:
        self.database.write(lambda s: s.execute(session.update(table).where(which).values(values)))


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    """Set the umask of services."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope='session')
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp('schema') / 'empty.sqlite'
    made = open_database(path)
    schema.sync(made)
    made.dispose()
    return path


@pytest.fixture
def database_path(empty_database: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / 'precache.sqlite'
    shutil.copyfile(empty_database, path)
    return path


@pytest.fixture
def database(database_path: pathlib.Path) -> Iterator[session.Database]:
    """A migrated database of the test's own."""
    made = open_in_haste(database_path)
    yield made
    made.dispose()


@pytest.fixture
def world(database: session.Database) -> World:
    """The stores on the database, with one cell and no hosts."""
    return open_world(database)


def open_in_haste(path: pathlib.Path) -> session.Database:
    """Open a database that need not survive a power loss."""
    made = open_database(path)
    made.dispose()

    @sa.event.listens_for(made.engine, 'connect')
    def _do_not_wait_for_the_disk(connection: Any, record: Any) -> None:
        connection.execute('PRAGMA synchronous = OFF')

    return made


def open_world(database: session.Database) -> World:
    stock = inventory.Inventory(database)
    return World(
        database=database,
        inventory=stock,
        requests=requests.Requests(database, LIMITS),
        jobs=db_jobs.Jobs(database, LEASE_SECONDS),
        steering=request_actions.RequestActions(database),
        agents=agents.Agents(database, DOWN_SECONDS),
        hearings=hearing.Hearings(database, GAP_SECONDS),
        cell=stock.create_cell('cell1', 'fake:///cell1'),
    )


def open_database(path: pathlib.Path) -> session.Database:
    conf = options.new(config_files=[])
    conf.set_override('connection', f'sqlite:///{path}', 'database')
    return session.connect(conf)


@pytest.fixture
def root_logger_as_it_was() -> Iterator[None]:
    """Restore the root logger, since the tested code configures logging for the whole process."""
    root, ours = logging.getLogger(), logging.getLogger(outages.__name__)
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)
