# SPDX-License-Identifier: Apache-2.0
"""The database's clock without a query for each reading: by a monotonic one, corrected often."""

import datetime
import time
from collections.abc import Callable

from nova_precache.db.engine import session as db_session


class DatabaseClock:
    """The database's time; thread-safe.

    :param monotonic: seconds, with any origin
    """

    def __init__(
        self, database: db_session.Database, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._monotonic = monotonic
        self._known: tuple[datetime.datetime, float] | None = None

    def correct(self) -> None:
        """Read the database's time; to be called every few seconds."""
        self._known = self._read()

    def now(self) -> datetime.datetime:
        """Return the database's time, in UTC without a time zone.

        :raises nova_precache.exception.DatabaseUnavailable: it has never answered so far
        """
        if self._known is None:
            self._known = self._read()
        now, read_at = self._known
        return now + datetime.timedelta(seconds=self._monotonic() - read_at)

    def _read(self) -> tuple[datetime.datetime, float]:
        with self._database.reader() as session:
            return db_session.now(session), self._monotonic()
