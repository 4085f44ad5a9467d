# SPDX-License-Identifier: Apache-2.0
"""The policy for reopening a cut connection within one attempt."""

import dataclasses
from collections.abc import Callable

import tenacity

from nova_precache import exception


@dataclasses.dataclass(frozen=True)
class ResumePolicy:
    """How often, and how soon, a download is resumed at the byte where it was cut.

    It covers outages of seconds, such as a restart of Glance; longer ones are left to the
    next attempt.
    """

    max_opens: int = 5
    first_delay_seconds: float = 0.5
    max_delay_seconds: float = 8

    def opens(self, sleep: Callable[[float], None]) -> tenacity.Retrying:
        """Return an iterator over the opens; the last error is raised unchanged.

        :param sleep: waits the given seconds; an error it raises ends the iteration
        """
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(exception.DownloadInterrupted),
            stop=tenacity.stop_after_attempt(self.max_opens),
            wait=tenacity.wait_exponential(
                multiplier=self.first_delay_seconds, max=self.max_delay_seconds
            ),
            sleep=sleep,
            reraise=True,
        )
