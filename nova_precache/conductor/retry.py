# SPDX-License-Identifier: Apache-2.0
"""Decides which outcomes are retried, and when; without I/O."""

import dataclasses

from nova_precache import model

# For a host that is down and waited for. Its jobs are due as soon as it reports; this only
# bounds the wait if no conductor notices that.
HOST_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """Number of attempts and delays between them; a delay doubles with each attempt."""

    max_attempts: int
    delay_seconds: float
    max_delay_seconds: float

    def delay(
        self,
        outcome: model.ImageOutcome,
        attempts: int,
        mismatches: int,
        *,
        others_wait: bool = False,
    ) -> float | None:
        """Return the seconds until the next attempt, None if this outcome is final.

        A slow host whose bytes grow is called again as soon as no other host waits.

        :param attempts: number of attempts so far, including this one
        :param mismatches: number of earlier attempts that ended in an error that is retried once
        :param others_wait: another host waits for the slot; read for a slow host only
        """
        if outcome.status != model.TaskStatus.ERROR:
            return None
        if outcome.retry == model.Retry.LATER:
            return 0 if outcome.at_once else self.delay_seconds
        if outcome.is_attempt and self.is_last(attempts):
            return None
        if outcome.is_slow and others_wait:
            return self.max_delay_seconds
        if not outcome.is_attempt:
            return 0
        if outcome.retry == model.Retry.ONCE:
            return 0 if mismatches == 0 else None
        if outcome.retry == model.Retry.BACKOFF:
            return min(self.delay_seconds * 2.0 ** (attempts - 1), self.max_delay_seconds)
        return None

    def is_last(self, attempts: int) -> bool:
        """Return whether any error of this attempt is final.

        An attempt that a stopping compute aborts does not count, and is repeated.

        :param attempts: number of attempts so far, including this one
        """
        return attempts >= self.max_attempts
