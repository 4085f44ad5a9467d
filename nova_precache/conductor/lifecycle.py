# SPDX-License-Identifier: Apache-2.0
"""Moves requests on without a call: opens and expires windows, stops computes.

All state is in the database, and any conductor may do any of it: the others finish the work of
one that dies. A message that a request was steered only makes a conductor look sooner.
"""

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from nova_precache.conductor import tracker
from nova_precache.db import request_actions

LOG = logging.getLogger(__name__)

# While orders are sent: the next poll may find that a compute has carried one out.
STOPPING_POLL_SECONDS = 1.0
STOP_SECONDS = 5.0


class StopOrderSender(Protocol):
    """Carries out orders; ``conductor.stop_orders.StopOrders`` sends them to computes."""

    def stop_transfers(self) -> bool:
        """Stop the transfers that no request wants; False if there are none."""

    def change_transfers(self) -> bool:
        """Change the options of running transfers; False if all are current."""

    def discard_partials(self) -> None: ...

    def stop(self) -> None: ...


class HostRecovery(Protocol):
    """Finds hosts that are back; ``db.host_recovery.AgentHostRecovery`` does so for agents."""

    def hasten(self) -> int:
        """Make the jobs that waited for hosts that are back due now; return their number."""


class LifecycleLoop:
    """The lifecycle loop of one conductor: polls, also when woken.

    :param poll_seconds: may change at any time
    :param freed: called when waiting jobs may continue
    """

    def __init__(
        self,
        store: request_actions.RequestActions,
        hosts: HostRecovery,
        track: tracker.Tracker,
        orders: StopOrderSender,
        poll_seconds: float,
        freed: Callable[[], None],
    ) -> None:
        self._store = store
        self._recovery = hosts
        self._tracker = track
        self._orders = orders
        self.poll_seconds = poll_seconds
        self._freed = freed
        self._is_stopping_transfers = self._is_changing_transfers = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run, name='lifecycle', daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._loop.start()

    def wake(self) -> None:
        """Wake the loop now."""
        self._wake.set()

    def stop(self) -> None:
        """Stop the loop and the stop orders."""
        self._stopping.set()
        self.wake()
        if self._loop.ident is not None:
            self._loop.join(STOP_SECONDS)
        self._orders.stop()

    def run_once(self) -> None:
        """Run every step; a step that fails does not hold up the others, and is retried."""
        for step in (
            self._stop_transfers,  # first: a user may wait for it
            self._change_transfers,
            self._adopt,
            self._check,
            self._expire,
            self._stop_transfers,
            self._open_windows,
            self._call_returned_hosts,
            self._orders.discard_partials,
        ):
            try:
                step()
            except Exception:
                LOG.exception('The step %s of the lifecycle loop failed', step.__name__)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            self.run_once()
            self._wake.wait(self._seconds_to_wait())

    def _seconds_to_wait(self) -> float:
        if self._is_stopping_transfers or self._is_changing_transfers:
            return min(STOPPING_POLL_SECONDS, self.poll_seconds)
        return self.poll_seconds

    def _stop_transfers(self) -> None:
        self._is_stopping_transfers = self._orders.stop_transfers()

    def _change_transfers(self) -> None:
        self._is_changing_transfers = self._orders.change_transfers()

    def _adopt(self) -> None:
        self._tracker.settle(self._store.adopt())

    def _check(self) -> None:
        """Do the checks of a conductor that died right after it recorded an outcome."""
        self._tracker.settle(self._store.check())

    def _expire(self) -> None:
        self._tracker.settle(self._store.expire())

    def _open_windows(self) -> None:
        for request_id in self._store.open_windows():
            self._tracker.opened(request_id)
            self._freed()

    def _call_returned_hosts(self) -> None:
        if self._recovery.hasten():
            self._freed()
