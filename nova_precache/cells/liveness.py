# SPDX-License-Identifier: Apache-2.0
"""Looks up in the cells' databases which stock nova-computes can be called.

Each cell has its own threads and a time limit: a database that gives no answer does not delay
the other cells, and is not queried again for a while.
"""

import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent import futures

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import deadline, exception, model, outages
from nova_precache.cells import breaker, inventory, services

ANSWER_SECONDS = 8.0
# For callers that must not wait long; a host that is unknown by then is checked before a call.
BRIEF_SECONDS = 1.0
SETTLING_SECONDS = 5.0  # after which a host that has not reported yet is checked again
REST_SECONDS = (10.0, 20.0, 40.0, 60.0)  # longer after each failure
CELLS_SECONDS = 10.0
CELL_THREADS = 4
_SILENT = 'it does not answer'
_HAS_MOVED = 'its mapping has just changed'
_NOT_YET = 'it has not reported yet since the database of its cell came back'
_NO_SERVICE = 'host down: it has no nova-compute service'

_Asked = futures.Future[Mapping[str, services.Service]]


@dataclasses.dataclass(frozen=True)
class Look:
    """The state of hosts at one time.

    :ivar services: host to its nova-compute service, if it has one
    :ivar down: host to the reason why it must not be called
    :ivar unknown: host to the reason why its state is unknown
    :ivar settling: host to the reason why its state will be known only after a while: it
        could not report while its cell's database was away
    """

    services: Mapping[str, services.Service]
    down: Mapping[str, str]
    unknown: Mapping[str, str]
    settling: Mapping[str, str] = dataclasses.field(default_factory=dict)


class NovaLiveness:
    """The nova-computes of every cell; each look queries each cell once.

    :param down_seconds: seconds after its last report from which a nova-compute is down
    :param clock: monotonic seconds
    :param wait: waits for answers, up to a number of seconds
    :param answer_seconds: that number, by default
    """

    def __init__(
        self,
        aggregates: inventory.Inventory,
        down_seconds: float,
        clock: Callable[[], float],
        wait: Callable[[Collection[_Asked], float], object] = futures.wait,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._inventory = aggregates
        self._down_seconds = down_seconds
        self._clock = clock
        self._wait = wait
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()
        self._cells: dict[str, _Cell] = {}
        self._cells_are_old_at = float('-inf')

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map hosts that are known to be down or disabled to the reason.

        A host is left out if its cell does not answer within ``BRIEF_SECONDS``.
        """
        return self.look(hosts, BRIEF_SECONDS).down

    def settling(self, hosts: Collection[str]) -> Collection[str]:
        """Return the silent hosts of cells whose databases have just come back."""
        return list(self.look(hosts, BRIEF_SECONDS).settling)

    def why_down(self, host: str, cell_uuid: str) -> str | None:
        """Return why a host must not be called, None if it may.

        :raises nova_precache.exception.CellUnreachable: the cell's database gives no answer
        :raises nova_precache.exception.HostOccupied: it is not known yet whether the host is down
        """
        look = self.look_at({host: cell_uuid})
        if host in look.settling:
            raise exception.HostOccupied(look.settling[host], SETTLING_SECONDS)
        if host in look.unknown:
            raise exception.CellUnreachable(look.unknown[host])
        return look.down.get(host)

    def look(self, hosts: Collection[str], seconds: float | None = None) -> Look:
        """Look up hosts of any cells; unmapped hosts are absent."""
        return self.look_at(self._inventory.cell_of_hosts(hosts), seconds)

    def look_at(self, cell_of_hosts: Mapping[str, str], seconds: float | None = None) -> Look:
        """Look up hosts with known cells.

        :param cell_of_hosts: host to the uuid of its cell
        :param seconds: a shorter time limit, whose expiry does not count as a cell's failure
        """
        by_cell: dict[str, list[str]] = {}
        for host, cell_uuid in cell_of_hosts.items():
            by_cell.setdefault(cell_uuid, []).append(host)
        cells = self._known_cells(by_cell.keys())
        asked = {uuid: cells[uuid].ask(hosts) for uuid, hosts in by_cell.items() if uuid in cells}
        most = self._answer_seconds if seconds is None else seconds
        self._wait(asked.values(), deadline.left(most))
        found: dict[str, services.Service] = {}
        down: dict[str, str] = {}
        unknown: dict[str, str] = {}
        settling: dict[str, str] = {}
        for uuid, hosts in by_cell.items():
            try:
                told = _answer(cells.get(uuid), asked.get(uuid), uuid, rests=seconds is None)
            except exception.CellUnreachable as exc:
                unknown.update(dict.fromkeys(hosts, str(exc)))
                continue
            found.update(told)
            if not cells[uuid].is_back_for(self._down_seconds):
                silent = (host for host in told if told[host].is_silent(self._down_seconds))
                settling.update(dict.fromkeys(silent, _NOT_YET))
            for host in hosts:
                service = told.get(host)
                why = (
                    _NO_SERVICE
                    if service is None
                    else service.unavailable_reason(self._down_seconds)
                )
                if why and host not in settling:
                    down[host] = why
        return Look(found, down, unknown, settling)

    def close(self) -> None:
        """Close the connections to the cells' databases, and start no further query."""
        with self._lock:
            self._replace_cells([])

    def _known_cells(self, needed: Collection[str]) -> Mapping[str, '_Cell']:
        """Return the cached cells if they are recent and include all needed ones, else reload.

        While the inventory's database is away, the cached cells are used.
        """
        with self._lock:
            is_fresh = self._clock() < self._cells_are_old_at
            if is_fresh and all(uuid in self._cells for uuid in needed):
                return dict(self._cells)
        try:
            mapped = self._inventory.list_cells()
        except (exception.DatabaseUnavailable, db_exception.DBError, sa.exc.SQLAlchemyError):
            with self._lock:
                if not self._cells:
                    raise
                return dict(self._cells)
        with self._lock:
            self._replace_cells(mapped)
            self._cells_are_old_at = self._clock() + CELLS_SECONDS
            return dict(self._cells)

    def _replace_cells(self, mapped: Collection[model.Cell]) -> None:
        old = self._cells
        self._cells = {
            cell.uuid: old[cell.uuid]
            if cell.uuid in old and old[cell.uuid].cell == cell
            else _Cell(cell, self._clock)
            for cell in mapped
        }
        for gone in old.values():
            if gone not in self._cells.values():
                gone.close()


class _Cell:
    """A cell's database, which is not queried for a while after it gave no answer."""

    def __init__(self, cell: model.Cell, clock: Callable[[], float]) -> None:
        self.cell = cell
        self._clock = clock
        self._pool = futures.ThreadPoolExecutor(CELL_THREADS, thread_name_prefix='liveness')
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._breaker = breaker.CircuitBreaker(
            lambda failures: REST_SECONDS[min(failures, len(REST_SECONDS)) - 1], clock
        )
        self._outage = outages.Outage(f'Database of cell {cell.name}', clock)
        self._back_since = float('-inf')
        self._is_closed = False

    def is_back_for(self, seconds: float) -> bool:
        """Return whether the last return of the database from an outage is longer ago."""
        return self._clock() - self._back_since > seconds

    def ask(self, hosts: Collection[str]) -> _Asked:
        """Start a query for hosts."""
        refusal: _Asked = futures.Future()
        if not self.cell.database_connection:
            why = self.cell.database_problem or 'its mapping has no database URL'
            refusal.set_exception(_unreachable(self.cell, why))
            return refusal
        if self._breaker.is_open:
            refusal.set_exception(_unreachable(self.cell, 'it did not answer a moment ago'))
            return refusal
        try:
            return self._pool.submit(self._load, hosts)
        except RuntimeError:  # closed meanwhile, because its mapping has changed
            refusal.set_exception(_unreachable(self.cell, _HAS_MOVED))
            return refusal

    def answer(self, asked: _Asked, *, rests: bool) -> Mapping[str, services.Service]:
        """Return the result of a query, if it has arrived.

        :param rests: otherwise, do not query the cell for a while
        :raises nova_precache.exception.CellUnreachable: the query failed or has no result yet
        """
        if not asked.done():
            asked.cancel()
            error = _unreachable(self.cell, _SILENT)
            if rests:
                self._rest(error)
            raise error
        try:
            return asked.result()
        except futures.CancelledError:
            raise _unreachable(self.cell, _HAS_MOVED) from None

    def close(self) -> None:
        """Start no further query; close each connection once its query is answered."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._close_unused()

    def _load(self, hosts: Collection[str]) -> Mapping[str, services.Service]:
        try:
            found = services.load(self._connect(), hosts)
        except Exception as exc:  # noqa: BLE001 - each driver has its own error for a bad URL
            # Neither chained nor quoted in full: the message may contain a part of a password.
            why = type(getattr(exc, 'orig', None) or exc).__name__
            if isinstance(exc, ImportError):
                why = f'Python module {exc.name} is not installed'
        else:
            if self._breaker.has_failed:
                self._back_since = self._clock()
            self._breaker.succeeded(closes=False)
            self._outage.over()
            return found
        finally:
            if self._is_closed:
                self._close_unused()
        error = _unreachable(self.cell, why)
        self._rest(error)
        raise error

    def _close_unused(self) -> None:
        if self._engine is not None:
            # Engine.dispose would make another pool; used connections return to the old one.
            self._engine.pool.dispose()

    def _connect(self) -> sa.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = services.connect(self.cell.database_connection)
            return self._engine

    def _rest(self, error: exception.CellUnreachable) -> None:
        self._outage.began(error)
        if not self._breaker.is_open:  # else an abandoned query has failed at last
            self._breaker.failed()


def _answer(
    cell: _Cell | None, asked: _Asked | None, uuid: str, *, rests: bool
) -> Mapping[str, services.Service]:
    if cell is None or asked is None:
        raise exception.CellUnreachable(f'cell {uuid} has no mapping')
    return cell.answer(asked, rests=rests)


def _unreachable(cell: model.Cell, why: str) -> exception.CellUnreachable:
    return exception.CellUnreachable(f"cell {cell.name}'s database is unreachable ({why})")
