# SPDX-License-Identifier: Apache-2.0
"""Reports to the database, every few seconds, that this process of a conductor or an API runs."""

import logging
import os
import threading
import uuid
from collections.abc import Callable
from typing import Protocol

from nova_precache import concurrency, deadline, model, outages

LOG = logging.getLogger(__name__)

STOP_SECONDS = 3.0


class ServiceStore(Protocol):
    """The services; implemented by ``db.services.Services``."""

    def report(self, process: model.ServiceProcess, *, replaces: bool) -> bool: ...

    def stop(self, process_id: str) -> None: ...


class ServiceReporter:
    """Registers this process when it starts, then reports, and says that it stops.

    A database that is away only delays the reports.

    :param first_seconds: the first report is made after this time
    """

    def __init__(
        self,
        store: ServiceStore,
        binary: model.Binary,
        host: str,
        version: str,
        report_seconds: float,
        first_seconds: float = 0,
    ) -> None:
        self._store = store
        self._new_process: Callable[[], model.ServiceProcess] = lambda: model.ServiceProcess(
            str(uuid.uuid4()), binary, host, version
        )
        self._report_seconds = report_seconds
        self._first_seconds = first_seconds
        self._running: _Running | None = None
        self._is_over = False

    def start(self) -> None:
        """Start to report, in the background and under a new id."""
        running = _Running(
            self._store, self._new_process(), self._report_seconds, self._first_seconds
        )
        self._running = running
        running.thread.start()

    def stop(self) -> None:
        """Report that this process stops; do not wait long for a database that is away."""
        self._is_over = True
        running, self._running = self._running, None
        if running is not None and not concurrency.stop_within(STOP_SECONDS, running):
            LOG.warning('The database did not take in time that %s stops', running.process.binary)

    def start_in_workers(self) -> None:
        """Start here, and again in each process that is forked from this one.

        A process that forks others serves nothing itself, so it does not report any longer.
        """
        os.register_at_fork(after_in_parent=self._leave, after_in_child=self._start_in_child)
        self.start()

    def _start_in_child(self) -> None:
        if not self._is_over:
            self.start()

    def _leave(self) -> None:
        """Stop without waiting: no lock may be taken between two forks."""
        running, self._running = self._running, None
        if running is not None:
            running.stopping.set()


class _Running:
    """The reports of one process."""

    def __init__(
        self,
        store: ServiceStore,
        process: model.ServiceProcess,
        report_seconds: float,
        first_seconds: float,
    ) -> None:
        self._store = store
        self.process = process
        self._report_seconds = report_seconds
        self._first_seconds = first_seconds
        self.thread = threading.Thread(target=self._run, name='service-reports', daemon=True)
        self.stopping = threading.Event()
        self._has_replaced = False
        self._logged: str | None = None

    def _run(self) -> None:
        seconds = self._first_seconds
        while not self.stopping.wait(seconds):
            self._report()
            seconds = self._report_seconds

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join(STOP_SECONDS)  # a later report would say that it runs
        try:
            with deadline.within(STOP_SECONDS):
                self._store.stop(self.process.id)
        except Exception as exc:  # noqa: BLE001 - the edge of a thread
            self._log(exc)

    def _report(self) -> None:
        try:
            if self._store.report(self.process, replaces=not self._has_replaced):
                self._has_replaced = True
        except Exception as exc:  # noqa: BLE001 - the edge of a thread
            self._log(exc)
        else:
            self._logged = None

    def _log(self, error: Exception) -> None:
        """Log a failure once, and an outage not at all: the database has logged it."""
        text = outages.first_line(error)
        level = logging.ERROR
        if outages.is_logged(error) or text == self._logged:
            level = logging.DEBUG
        self._logged = text
        LOG.log(level, 'Failed to report that %s runs: %s', self.process.binary, text)
