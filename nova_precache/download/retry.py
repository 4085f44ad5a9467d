# SPDX-License-Identifier: Apache-2.0
"""The policy for reopening a source that broke, within one attempt."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ResumePolicy:
    """How often, and how soon, one source is opened again at the byte where it broke.

    It covers outages of seconds, such as a restart of Glance; longer ones are left to the
    next attempt. Each source has its own count: to change to another one is not a resume.
    """

    max_opens: int = 5
    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 8

    def delay_seconds(self, faults: int) -> float:
        """Return the wait before the next open of a source that broke this many times."""
        return min(self.first_delay_seconds * 2.0 ** (faults - 1), self.max_delay_seconds)
