# SPDX-License-Identifier: Apache-2.0
"""Waits out a database outage while holding results that must not be lost."""

import threading
from collections.abc import Callable
from typing import TypeVar

from nova_precache import exception

PAUSE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # the last one repeats

T = TypeVar('T')


class DatabaseWait:
    """Retries database work until the database is back or the conductor stops.

    :param wait: waits for some seconds, less if the conductor stops; returns whether it stops
    """

    def __init__(self, wait: Callable[[float], bool] | None = None) -> None:
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait

    def give_up(self) -> None:
        """Stop waiting: another conductor continues the work that cannot be recorded now."""
        self._stopping.set()

    def wait_out(self, work: Callable[[], T]) -> T:
        """Run work that needs the database, retry it during an outage, and return its result.

        :raises nova_precache.exception.DatabaseUnavailable: the conductor stops
        """
        tries = 0
        while True:
            try:
                return work()
            except exception.DatabaseUnavailable:  # logged as an outage already
                seconds = PAUSE_SECONDS[min(tries, len(PAUSE_SECONDS) - 1)]
                if self._wait(seconds):
                    raise
                tries += 1
