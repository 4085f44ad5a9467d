# SPDX-License-Identifier: Apache-2.0
"""Which outcomes are tried again, and when: decided without any I/O."""

import dataclasses

from nova_precache import model

# For a host that is down and waited for. Its jobs are due as soon as it reports; this only
# bounds what comes of it when nobody saw that.
HOST_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """How often and how slowly; delays in seconds, doubled with each attempt."""

    max_attempts: int
    delay_seconds: float
    max_delay_seconds: float

    def delay(self, outcome: model.ImageOutcome, attempts: int, mismatches: int) -> float | None:
        """Give the seconds to wait for the next attempt, None when this outcome is final.

        :param attempts: how many were made, this one included
        :param mismatches: how many of the earlier ones ended in an error that is tried once more
        """
        if outcome.status != model.TaskStatus.ERROR:
            return None
        if outcome.retry == model.Retry.LATER:
            return 0 if outcome.at_once else self.delay_seconds
        if self.is_last(attempts):
            return None
        if outcome.retry == model.Retry.ONCE:
            return 0 if mismatches == 0 else None
        if outcome.retry == model.Retry.BACKOFF:
            return min(self.delay_seconds * 2.0 ** (attempts - 1), self.max_delay_seconds)
        return None

    def is_last(self, attempts: int) -> bool:
        """Tell whether whatever error ends this attempt is final.

        An attempt that a compute breaks off because it stops is none, and is made again.

        :param attempts: how many were made, this one included
        """
        return attempts >= self.max_attempts
