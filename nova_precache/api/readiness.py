# SPDX-License-Identifier: Apache-2.0
"""Whether the API can be of use: the database answers, and a conductor is up.

The answer needs no authentication, so it has numbers and no names; those are details, which
``[healthcheck] detailed`` shows.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Collection

from oslo_middleware.healthcheck import pluginbase

from nova_precache import deadline, exception, model
from nova_precache.api import cell_states, request

CHECK_SECONDS = 3.0
KEPT_SECONDS = 5.0
_OK = 'OK'


@dataclasses.dataclass(frozen=True)
class _State:
    """What a check has found.

    :ivar is_ready: nothing that every request needs is missing
    :ivar findings: what is missing or differs, without names
    :ivar details: the same, with names
    """

    is_ready: bool
    findings: Collection[str] = ()
    details: Collection[str] = ()


class Readiness:
    """A backend of oslo.middleware's healthcheck; a result is reused for a few seconds.

    :param clock: monotonic seconds
    """

    def __init__(
        self, services: request.Services, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._services = services
        self._clock = clock
        self._lock = threading.Lock()
        self._state = _State(is_ready=False)
        self._is_old_at = float('-inf')

    def healthcheck(self, server_port: int) -> pluginbase.HealthcheckResult:
        with self._lock:  # concurrent callers share one check
            if self._clock() >= self._is_old_at:
                self._state = self._check()
                self._is_old_at = self._clock() + KEPT_SECONDS
            state = self._state
        reason = '; '.join([*([_OK] if state.is_ready else []), *state.findings])
        return pluginbase.HealthcheckResult(state.is_ready, reason, '; '.join(state.details))

    def _check(self) -> _State:
        try:
            with deadline.within(CHECK_SECONDS):
                return self._look()
        except exception.PrecacheError as exc:
            return _State(
                is_ready=False, findings=['the database is unavailable'], details=[str(exc)]
            )

    def _look(self) -> _State:
        known = self._services.services
        conductors = known.list_page(
            limit=1, binary=model.Binary.CONDUCTOR, status=model.HostStatus.UP
        )
        findings = [] if conductors else ['no conductor is up']
        away, number = self._cells_away(has_conductor=bool(conductors))
        if away:
            findings.append(f'{len(away)} of {number} cells are not up')
        versions = known.versions()
        if len(versions) > 1:
            findings.append(f'services of {len(versions)} releases run')
            away.append(f'releases: {", ".join(sorted(versions))}')
        return _State(bool(conductors), findings, away)

    def _cells_away(self, *, has_conductor: bool) -> tuple[list[str], int]:
        """Describe the enabled cells that are not up, and count the enabled ones."""
        heard, away, number = self._services.hearings.load(), list[str](), 0
        for cell in self._services.inventory.list_cells():
            status, reason = cell_states.judge(
                cell, heard.cells.get(cell.uuid), heard.now, has_conductor=has_conductor
            )
            number += status is not model.CellStatus.DISABLED
            if status in {model.CellStatus.DOWN, model.CellStatus.UNKNOWN}:
                away.append(f'cell {cell.name or cell.uuid}: {reason}')
        return away, number
