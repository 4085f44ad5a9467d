# SPDX-License-Identifier: Apache-2.0
"""Which hosts with a stock nova-compute can be called, as the cells' databases tell.

Each cell has threads of its own and is waited for so long and no longer: one whose
database gives no answer delays nobody else, and is left alone for a while.
"""

import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent import futures

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import deadline, exception, model, outages
from nova_precache.cells import inventory, services

ANSWER_SECONDS = 8.0
# For who has others to see to: of what is not known by then, it is asked again before a call.
BRIEF_SECONDS = 1.0
SETTLING_SECONDS = 5.0  # after which a host is looked at again that has not reported yet
REST_SECONDS = (10.0, 20.0, 40.0, 60.0)  # longer each time that it gives no answer
CELLS_SECONDS = 10.0
CELL_THREADS = 4
_SILENT = 'it gives no answer'
_HAS_MOVED = 'its mapping has just changed'
_NOT_YET = 'it has not reported yet since the database of its cell is back'
_NO_SERVICE = 'host down: it has no nova-compute service'

_Asked = futures.Future[Mapping[str, services.Service]]


@dataclasses.dataclass(frozen=True)
class Look:
    """What is known of hosts at one time.

    :ivar services: host to its nova-compute, where there is one
    :ivar down: host to the reason why it is not called
    :ivar unknown: host to the reason why nothing is known of it
    :ivar settling: host to the reason why it is known only in a while whether it is down: it
        could not report while its cell's database was away
    """

    services: Mapping[str, services.Service]
    down: Mapping[str, str]
    unknown: Mapping[str, str]
    settling: Mapping[str, str] = dataclasses.field(default_factory=dict)


class NovaLiveness:
    """The nova-computes of every cell; each look is one query a cell.

    :param down_seconds: after its last report, from which a nova-compute is down
    :param clock: seconds that only grow
    :param wait: waits for answers, but no longer than so many seconds
    :param answer_seconds: these
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
        """Map hosts that are down or disabled to the reason, those alone of which it is known.

        What is not known in a moment counts as not known.
        """
        return self.look(hosts, BRIEF_SECONDS).down

    def settling(self, hosts: Collection[str]) -> Collection[str]:
        """Give the silent hosts of cells whose databases were away until a moment ago."""
        return list(self.look(hosts, BRIEF_SECONDS).settling)

    def why_down(self, host: str, cell_uuid: str) -> str | None:
        """Say why a host is not to be called.

        :raises nova_precache.exception.CellUnreachable: the cell's database does not tell
        :raises nova_precache.exception.HostOccupied: it is not known yet whether the host is down
        """
        look = self.look_at({host: cell_uuid})
        if host in look.settling:
            raise exception.HostOccupied(look.settling[host], SETTLING_SECONDS)
        if host in look.unknown:
            raise exception.CellUnreachable(look.unknown[host])
        return look.down.get(host)

    def look(self, hosts: Collection[str], seconds: float | None = None) -> Look:
        """Look at hosts of any cells; one that is not mapped to a cell is left out."""
        return self.look_at(self._inventory.cell_of_hosts(hosts), seconds)

    def look_at(self, cell_of_hosts: Mapping[str, str], seconds: float | None = None) -> Look:
        """Look at hosts whose cells are known, by their uuids.

        :param seconds: wait no longer than these, and hold it against no cell
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
            reasons = ((host, self._unavailable_reason(told.get(host))) for host in hosts)
            down.update((host, why) for host, why in reasons if why and host not in settling)
        return Look(found, down, unknown, settling)

    def close(self) -> None:
        """Close the connections to the cells' databases, and ask nothing more."""
        with self._lock:
            self._replace_cells([])

    def _unavailable_reason(self, service: services.Service | None) -> str | None:
        return _NO_SERVICE if service is None else service.unavailable_reason(self._down_seconds)

    def _known_cells(self, needed: Collection[str]) -> Mapping[str, '_Cell']:
        """Give the cells of a short while ago, if they have all that are needed.

        While the inventory is lost, the last ones have to do.
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
    """A cell's database, left alone for a while after it gave no answer."""

    def __init__(self, cell: model.Cell, clock: Callable[[], float]) -> None:
        self.cell = cell
        self._clock = clock
        self._pool = futures.ThreadPoolExecutor(CELL_THREADS, thread_name_prefix='liveness')
        self._lock = threading.Lock()
        self._engine: sa.Engine | None = None
        self._rests_until = float('-inf')
        self._silences = 0
        self._outage = outages.Outage(f'Database of cell {cell.name}', clock)
        self._back_since = float('-inf')
        self._is_closed = False

    def is_back_for(self, seconds: float) -> bool:
        """Return whether the database was not seen to be away in the last so many seconds."""
        return self._clock() - self._back_since > seconds

    def ask(self, hosts: Collection[str]) -> _Asked:
        """Begin to ask for hosts."""
        refusal: _Asked = futures.Future()
        if not self.cell.database_connection:
            why = self.cell.database_problem or 'its mapping names none'
            refusal.set_exception(_unreachable(self.cell, why))
            return refusal
        if self._clock() < self._rests_until:
            refusal.set_exception(_unreachable(self.cell, 'it gave no answer a moment ago'))
            return refusal
        try:
            return self._pool.submit(self._load, hosts)
        except RuntimeError:  # closed meanwhile, since its mapping is another now
            refusal.set_exception(_unreachable(self.cell, _HAS_MOVED))
            return refusal

    def answer(self, asked: _Asked, *, rests: bool) -> Mapping[str, services.Service]:
        """Give what was asked for, if it is known by now.

        :param rests: leave the cell alone for a while if it is not
        :raises nova_precache.exception.CellUnreachable: it is not
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
        """Ask nothing more; a connection in use is closed once its question is answered."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._close_unused()

    def _load(self, hosts: Collection[str]) -> Mapping[str, services.Service]:
        try:
            found = services.load(self._connect(), hosts)
        except Exception as exc:  # noqa: BLE001 - each driver has its own for a URL that is wrong
            # Not chained and not told in full: a part of a password may be in the message.
            why = type(getattr(exc, 'orig', None) or exc).__name__
            if isinstance(exc, ImportError):
                why = f'no Python module {exc.name} here'
        else:
            if self._silences:
                self._back_since = self._clock()
            self._silences = 0
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
            # The engine's own dispose makes another pool, and what is in use returns to the old.
            self._engine.pool.dispose()

    def _connect(self) -> sa.Engine:
        with self._lock:
            if self._engine is None:
                self._engine = services.connect(self.cell.database_connection)
            return self._engine

    def _rest(self, error: exception.CellUnreachable) -> None:
        self._outage.began(error)
        if self._clock() < self._rests_until:
            return  # a look that was given up has failed at last
        seconds = REST_SECONDS[min(self._silences, len(REST_SECONDS) - 1)]
        self._silences += 1
        self._rests_until = self._clock() + seconds


def _answer(
    cell: _Cell | None, asked: _Asked | None, uuid: str, *, rests: bool
) -> Mapping[str, services.Service]:
    if cell is None or asked is None:
        raise exception.CellUnreachable(f'cell {uuid} has no mapping')
    return cell.answer(asked, rests=rests)


def _unreachable(cell: model.Cell, why: str) -> exception.CellUnreachable:
    return exception.CellUnreachable(f"cell {cell.name}'s database is unreachable ({why})")
