# SPDX-License-Identifier: Apache-2.0
"""The random steps of a seed; the same seed gives the same steps. No I/O."""

import dataclasses
import enum
import random
from collections.abc import Iterator


class What(enum.StrEnum):
    """The kinds of steps."""

    CACHE = enum.auto()
    """Cache an image on one of the computes."""
    BOOT = enum.auto()
    """Create the root disk of an instance on one of the computes."""
    STOP = enum.auto()
    """Stop a running transfer."""
    CUT = enum.auto()
    """Close all connections to Glance."""
    STALL = enum.auto()
    """Stall all data from Glance for some seconds."""
    SPOIL = enum.auto()
    """Corrupt a byte of the next data."""
    KILL = enum.auto()
    """Kill the second compute and restart it."""
    RESTART_GLANCE = enum.auto()
    """Restart Glance."""
    FILL = enum.auto()
    """Fill the disk for some seconds."""
    FLIP = enum.auto()
    """Corrupt a byte of a partial download that no transfer writes."""
    REMOVE = enum.auto()
    """Remove a base file, as an operator might."""
    DELETE_INSTANCE = enum.auto()
    """Remove the root disk of an instance."""
    CLEAN = enum.auto()
    """Run a round of the image cache manager on one of the computes."""
    REST = enum.auto()
    """Wait until no transfer runs, and measure the memory of the long-lived compute."""


WEIGHTS = {
    What.CACHE: 40,
    What.BOOT: 8,
    What.STOP: 8,
    What.CUT: 8,
    What.STALL: 3,
    What.SPOIL: 4,
    What.KILL: 6,
    What.RESTART_GLANCE: 1,
    What.FILL: 3,
    What.FLIP: 5,
    What.REMOVE: 22,
    What.DELETE_INSTANCE: 4,
    What.CLEAN: 3,
    What.REST: 6,
}
STOPPING_ERRORS = ('Cancelled', 'DeadlinePassed', 'Paused', 'ShuttingDown')
_LONGEST_PAUSE_SECONDS = 0.6


@dataclasses.dataclass(frozen=True)
class Step:
    """One step; each kind uses the fields that it needs.

    :ivar compute: index of the compute
    :ivar choice: from 0 to 1, selects one of the existing objects
    :ivar amount: from 0 to 1, of the largest size or duration
    :ivar error: name of the error that stops a transfer
    :ivar pause_seconds: until the next step
    """

    what: What
    compute: int
    choice: float
    amount: float
    error: str
    pause_seconds: float


def steps(seed: int, computes: int) -> Iterator[Step]:
    """Yield steps endlessly."""
    chance = random.Random(seed)  # noqa: S311 - the same for the same seed
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        yield Step(
            what=chance.choices(kinds, weights)[0],
            compute=chance.randrange(computes),
            choice=chance.random(),
            amount=chance.random(),
            error=chance.choice(STOPPING_ERRORS),
            pause_seconds=chance.random() * _LONGEST_PAUSE_SECONDS,
        )
