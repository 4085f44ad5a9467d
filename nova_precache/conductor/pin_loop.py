# SPDX-License-Identifier: Apache-2.0
"""Runs the rounds and the top-ups of pins in a thread of its own.

The image service may be slow, and a fleet takes long to check: no other work waits for it.
"""

import logging
import threading
from collections.abc import Collection

from nova_precache.conductor import pins

LOG = logging.getLogger(__name__)

# Work that ends in this time leads to one top-up.
PAUSE_SECONDS = 0.25
STOP_SECONDS = 5.0


class EndedPins:
    """The pins whose work has ended here since the loop last looked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pins: set[str] = set()
        self._wake = threading.Event()

    def add(self, pin_id: str) -> None:
        """Note that work of a pin has ended, and wake the loop."""
        with self._lock:
            self._pins.add(pin_id)
        self._wake.set()

    def take(self) -> Collection[str]:
        """Return the noted pins and forget them."""
        self._wake.clear()
        with self._lock:
            taken, self._pins = self._pins, set()
        return taken

    def wake(self) -> None:
        """Wake the loop now."""
        self._wake.set()

    def wait(self, seconds: float) -> None:
        """Wait until work ends, at most this long."""
        self._wake.wait(seconds)


class PinLoop:
    """The loop of one conductor: runs when work of a pin ends, and otherwise polls.

    :ivar poll_seconds: between two looks at pins with a backlog; may change at any time
    """

    def __init__(self, keeper: pins.Reconciler, ended: EndedPins, poll_seconds: float) -> None:
        self._keeper = keeper
        self._ended = ended
        self.poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._loop = threading.Thread(target=self._run, name='pins', daemon=True)

    def start(self) -> None:
        """Start the loop."""
        self._loop.start()

    def wake(self) -> None:
        """Wake the loop now."""
        self._ended.wake()

    def stop(self) -> None:
        """Stop the loop; do not wait longer than ``STOP_SECONDS`` for a slow image service."""
        self._stopping.set()
        self.wake()
        if self._loop.ident is not None:
            self._loop.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._keeper.run(self._ended.take())
            except Exception:
                LOG.exception('Keeping the pins failed; retrying')
            self._stopping.wait(PAUSE_SECONDS)
            self._ended.wait(self._keeper.seconds_to_wait(self.poll_seconds))
