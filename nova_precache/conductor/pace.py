# SPDX-License-Identifier: Apache-2.0
"""How often computes report: the more hosts and transfers a conductor hears, the less often.

So the reports of many transfers cost a conductor about half a core, until the longest interval is
reached: with 10 seconds by some 4,500 hosts with one transfer each, with 20 seconds by 9,000.
"""

import threading
import time
from collections.abc import Callable, Mapping

from nova_precache import model
from nova_precache.conductor import rpcapi
from nova_precache.db import jobs

SHORTEST_SECONDS = 1.0
LONGEST_SECONDS = 10.0
CORES = 0.5
# The time of one core for a message, and for each transfer in it with its part of a bulk write.
MESSAGE_SECONDS = 0.001
TRANSFER_SECONDS = 0.0001
# Hosts with transfers report within it, though other conductors may receive some reports.
WINDOW_SECONDS = 2 * model.LONGEST_REPORT_SECONDS
# A compute misses the answer to a report, and sends the report again.
LOST_SECONDS = rpcapi.REPORT_SECONDS + 3


def moving_seconds(write_seconds: float) -> float:
    """Return how old the recorded progress of a moving transfer may be after a lost report.

    :param write_seconds: the interval between writes of progress; one may be late by as long
    """
    return model.LONGEST_REPORT_SECONDS + LOST_SECONDS + 2 * write_seconds


class Pace:
    """Counts the hosts that report transfers, and returns the interval for them; thread-safe.

    :param clock: seconds, with any origin
    :param longest_seconds: of the intervals that it returns
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        longest_seconds: float = LONGEST_SECONDS,
    ) -> None:
        self._clock = clock
        self._longest_seconds = longest_seconds
        self._lock = threading.Lock()
        self._window = _Window(clock())
        self._cost_before = 0.0

    def note(self, transfers: Mapping[jobs.Sender, int]) -> None:
        """Record the number of transfers of which each host has reported, at each write.

        Windows end only here: while the database is away, the hosts report as often as before.
        Only what a registered agent reported of its own jobs may count: any other sender could
        make all hosts report less often.
        """
        with self._lock:
            if self._clock() - self._window.began_at >= WINDOW_SECONDS:
                self._cost_before = self._window.cost_seconds()
                self._window = _Window(self._clock())
            for host, number in transfers.items():
                if number:
                    self._window.note(host, number)

    def next_seconds(self) -> float:
        """Return the time until the next report of a host with transfers."""
        with self._lock:
            cost_seconds = max(self._window.cost_seconds(), self._cost_before)
        return min(max(SHORTEST_SECONDS, cost_seconds / CORES), self._longest_seconds)


class _Window:
    """The largest number of transfers of each host that reported since it began.

    A report may be written in two parts.
    """

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self._of_hosts: dict[jobs.Sender, int] = {}
        self._transfers = 0

    def note(self, host: jobs.Sender, transfers: int) -> None:
        known = self._of_hosts.get(host, 0)
        self._of_hosts[host] = max(known, transfers)
        self._transfers += self._of_hosts[host] - known

    def cost_seconds(self) -> float:
        """Return the time of one core for one report of each host."""
        return len(self._of_hosts) * MESSAGE_SECONDS + self._transfers * TRANSFER_SECONDS
