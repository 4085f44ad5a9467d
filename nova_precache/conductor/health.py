# SPDX-License-Identifier: Apache-2.0
"""What a conductor needs: its database, the API's broker, and the brokers of the cells."""

from collections.abc import Callable, Mapping

from nova_precache import deadline, exception, health, rpc

DATABASE_SECONDS = 3.0


class ConductorHealth:
    """Checks the services that a conductor depends on.

    A cell whose broker is away is reported, but makes the conductor unready only if no other
    cell is left: a dead cell must not hold up the others.

    :param ping_database: queries the database
    :param brokers: returns the transport of the API, by None, and of each enabled cell, by its
        name; None as a transport: the cell cannot be served
    :param silent_seconds: without an answer for so long, a broker is away
    """

    def __init__(
        self,
        ping_database: Callable[[], object],
        brokers: Callable[[], Mapping[str | None, rpc.Transport | None]],
        silent_seconds: float,
    ) -> None:
        self._ping_database = ping_database
        self._brokers = brokers
        self._silent_seconds = silent_seconds

    def check(self) -> health.Finding:
        ages: dict[str, float] = {}
        missing = self._check_database()
        away: list[health.Missing] = []
        brokers = self._brokers()
        cells = brokers.keys() - {None}
        for cell, transport in brokers.items():
            what = 'broker of the API' if cell is None else f'broker of cell {cell}'
            why = 'it cannot be served; see the log'
            if transport is not None:
                ages.update(transport.answered(what))
                why = transport.why_away(self._silent_seconds) or ''
            if why:
                (missing if cell is None else away).append(health.Missing(what, why))
        are_all_away = len(away) == len(cells)
        missing += [health.Missing(each.what, each.reason, are_all_away) for each in away]
        return health.Finding(missing, ages)

    def _check_database(self) -> list[health.Missing]:
        try:
            with deadline.within(DATABASE_SECONDS):
                self._ping_database()
        except exception.PrecacheError as exc:
            return [health.Missing('database', str(exc))]
        return []
