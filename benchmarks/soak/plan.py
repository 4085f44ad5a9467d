# SPDX-License-Identifier: Apache-2.0
"""What happens when, from a seed: the same seed gives the same steps. No I/O."""

import dataclasses
import enum
import random
from collections.abc import Iterator


class What(enum.StrEnum):
    """The kinds of steps."""

    CACHE = enum.auto()
    """Ask one of the computes for an image."""
    BOOT = enum.auto()
    """Have one make the root disk of an instance."""
    STOP = enum.auto()
    """Stop a transfer that runs."""
    CUT = enum.auto()
    """Break all connections to Glance."""
    STALL = enum.auto()
    """Hold all that comes from Glance, for a while."""
    SPOIL = enum.auto()
    """Have a byte wrong in the data that comes next."""
    KILL = enum.auto()
    """Kill the second compute, and start it again."""
    RESTART_GLANCE = enum.auto()
    """Stop Glance, and start it again."""
    FILL = enum.auto()
    """Fill the disk, for a while."""
    FLIP = enum.auto()
    """Turn a byte of an unfinished file that nobody works on."""
    REMOVE = enum.auto()
    """Remove a base file, as an operator might."""
    DELETE_INSTANCE = enum.auto()
    """Remove the root disk of an instance."""
    CLEAN = enum.auto()
    """Have one of the computes take a round of the image cache manager."""
    REST = enum.auto()
    """Wait until nothing runs, and see how much memory the long-lived compute keeps."""


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
    """One thing that happens; each kind looks at what it needs.

    :ivar compute: which of them, from 0 on
    :ivar choice: from 0 to 1: which of those that are there, however many these are
    :ivar amount: from 0 to 1: how much, or for how long
    :ivar error: what a transfer is stopped with
    :ivar pause_seconds: until the next one
    """

    what: What
    compute: int
    choice: float
    amount: float
    error: str
    pause_seconds: float


def steps(seed: int, computes: int) -> Iterator[Step]:
    """Give steps without end."""
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
