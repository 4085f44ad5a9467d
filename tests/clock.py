# SPDX-License-Identifier: Apache-2.0
"""A clock for tests: its time passes only as a test says."""


class Clock:
    """Seconds, with any origin."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds
