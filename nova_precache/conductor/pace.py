# SPDX-License-Identifier: Apache-2.0
"""How often computes report: the more hosts and transfers a conductor hears, the less often.

So the reports of many transfers cost a conductor about half a core, and not all of it.
"""

import threading
import time
from collections.abc import Callable

from nova_precache import model

SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = model.LONGEST_REPORT_SECONDS
CORES = 0.5
# Of one core, for a message, and for each transfer in it with its part of a bulk write.
MESSAGE_SECONDS = 0.0004
TRANSFER_SECONDS = 0.0001
# Hosts with transfers report within it, though other conductors may receive some reports.
WINDOW_SECONDS = 2 * LONGEST_SECONDS

_Host = tuple[str, str]


class Pace:
    """Counts the hosts that report transfers, and returns the interval for them; thread-safe.

    :param clock: seconds, with any origin
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._window = _Window(clock())
        self._cost_before = 0.0

    def note(self, cell_uuid: str, host: str, transfers: int) -> None:
        """Record that a host has reported the progress of this number of transfers."""
        if transfers:
            with self._lock:
                self._turn()
                self._window.note((cell_uuid, host), transfers)

    def next_seconds(self) -> float:
        """Return the time until the next report of a host with transfers."""
        with self._lock:
            self._turn()
            cost_seconds = max(self._window.cost_seconds(), self._cost_before)
        return min(max(SHORTEST_SECONDS, cost_seconds / CORES), LONGEST_SECONDS)

    def _turn(self) -> None:
        """Begin another window if the current one has ended."""
        age_seconds = self._clock() - self._window.began_at
        if age_seconds >= WINDOW_SECONDS:
            is_recent = age_seconds < 2 * WINDOW_SECONDS
            self._cost_before = self._window.cost_seconds() if is_recent else 0.0
            self._window = _Window(self._clock())


class _Window:
    """The newest number of transfers of each host that reported since it began."""

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self._of_hosts: dict[_Host, int] = {}
        self._transfers = 0

    def note(self, host: _Host, transfers: int) -> None:
        self._transfers += transfers - self._of_hosts.get(host, 0)
        self._of_hosts[host] = transfers

    def cost_seconds(self) -> float:
        """Return the time of one core for one report of each host."""
        return len(self._of_hosts) * MESSAGE_SECONDS + self._transfers * TRANSFER_SECONDS
