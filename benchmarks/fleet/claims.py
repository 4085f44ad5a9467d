# SPDX-License-Identifier: Apache-2.0
"""Claims of many hosts that are due at once, with a slot for each of them.

All conductors wait for the lock of the counter while one of them claims.
"""

import dataclasses
import datetime
import time
from typing import Any

import sqlalchemy as sa

from benchmarks import observed
from benchmarks.fleet import site
from benchmarks.fleet.cases import Case
from benchmarks.fleet.computes import SimulatedComputes
from nova_precache.db.engine import session as db_session

FEW_HOSTS = 16
_LOCKS_COUNTER = 'UPDATE counters SET value=counters.value'
_LOCKED_AT = 'benchmark_locked_at'


@dataclasses.dataclass(frozen=True)
class Claims:
    """Results of one fleet.

    :ivar first_call_seconds: from the time at which its request is planned
    :ivar last_call_seconds: likewise, until each host has been called
    :ivar lock_seconds: the longest time that a transaction held the lock of the counter
    :ivar cpu_seconds: of the conductor, from then until the last call
    :ivar database_cpu_seconds: of the server; None without one
    """

    database: str
    hosts: int
    first_call_seconds: float
    last_call_seconds: float
    lock_seconds: float
    cpu_seconds: float
    database_cpu_seconds: float | None = None

    @property
    def name(self) -> str:
        return f'{self.hosts:,} hosts, {self.database}'


def measure(
    database: str, hosts: int, database_url: str, database_pid: int | None = None
) -> Claims:
    """Request an image for hosts that may all be called at once."""
    case = Case(database, hosts, parallel=hosts)
    with site.opened(case, database_url) as world:
        computes = SimulatedComputes(world.parts.jobs)
        world.simulate(computes)
        locks = _locks(world.parts.database)
        with world.conducting():
            _do_once(world)
            computes.called.clear()
            locks.clear()
            request = world.ask(world.new_request(1, world.site.fleet))
            poll = site.StatusPoll(world.parts.database, request.id)
            poll.until_planned()
            began_cpu, began_server = time.process_time(), _server_seconds(database_pid)
            poll.until_ended()
            poll.close()
            cpu_seconds = time.process_time() - began_cpu
            server_seconds = _server_seconds(database_pid) - began_server
        planned_at = world.parts.requests.get(request.id).planned_at
        assert planned_at is not None
        planned = planned_at.replace(tzinfo=datetime.UTC).timestamp()
        return Claims(
            database,
            hosts,
            first_call_seconds=min(computes.called.values()) - planned,
            last_call_seconds=max(computes.called.values()) - planned,
            lock_seconds=max(locks),
            cpu_seconds=cpu_seconds,
            database_cpu_seconds=None if database_pid is None else server_seconds,
        )


def _do_once(world: site.World) -> None:
    """Do the one-time work of a process for a small request."""
    request = world.ask(world.new_request(1, hosts=world.hosts[:FEW_HOSTS]))
    poll = site.StatusPoll(world.parts.database, request.id)
    poll.until_ended()
    poll.close()


def _server_seconds(pid: int | None) -> float:
    return 0.0 if pid is None else observed.cpu_seconds(pid)


def _locks(database: db_session.Database) -> list[float]:
    """Collect the times from each lock of the counter until the connection is free again."""
    held: list[float] = []

    def note(connection: sa.Connection, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith(_LOCKS_COUNTER):
            connection.info.setdefault(_LOCKED_AT, time.monotonic())

    def free(connection: object, record: Any) -> None:
        if (locked_at := record.info.pop(_LOCKED_AT, None)) is not None:
            held.append(time.monotonic() - locked_at)

    sa.event.listen(database.engine, 'after_cursor_execute', note)
    sa.event.listen(database.engine, 'checkin', free)
    return held
