# SPDX-License-Identifier: Apache-2.0
"""Waiting for a database that is away, with what must not be lost in hand."""

import threading
from collections.abc import Callable
from typing import TypeVar

from nova_precache import exception

PAUSE_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # and so on with the last

T = TypeVar('T')


class DatabaseWait:
    """Has workers try again until the database is back, or the conductor stops.

    :param wait: waits for a number of seconds, less if the conductor stops; gives whether it does
    """

    def __init__(self, wait: Callable[[float], bool] | None = None) -> None:
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait

    def give_up(self) -> None:
        """Wait no longer: another conductor continues what cannot be written now."""
        self._stopping.set()

    def wait_out(self, work: Callable[[], T]) -> T:
        """Do work that needs the database, once or again, and give its result.

        :raises nova_precache.exception.DatabaseUnavailable: the conductor stops
        """
        tries = 0
        while True:
            try:
                return work()
            except exception.DatabaseUnavailable:  # it is logged as an outage
                seconds = PAUSE_SECONDS[min(tries, len(PAUSE_SECONDS) - 1)]
                if self._wait(seconds):
                    raise
                tries += 1
