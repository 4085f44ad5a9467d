# SPDX-License-Identifier: Apache-2.0
"""What a compute needs: its registration, its cell's broker, a conductor, and its disk."""

from collections.abc import Callable
from typing import Protocol

from nova_precache import exception, health, rpc
from nova_precache.virt import driver as virt_driver

# A conductor that has answered nothing for so long is asked.
ASK_AFTER_SECONDS = 60.0
ASK_SECONDS = 3.0


class Conductor(Protocol):
    """The conductors; implemented by ``conductor.rpcapi.ConductorReporter``."""

    def answered_seconds_ago(self) -> float | None: ...

    def ask(self, seconds: float) -> None: ...


class ComputeHealth:
    """Checks what the compute of one host depends on.

    :param is_registered: returns whether the agent is registered and serves
    :param silent_seconds: without an answer for so long, the broker is away
    """

    def __init__(
        self,
        is_registered: Callable[[], bool],
        broker: rpc.Transport,
        conductor: Conductor,
        driver: virt_driver.ComputeDriver,
        silent_seconds: float,
    ) -> None:
        self._is_registered = is_registered
        self._broker = broker
        self._conductor = conductor
        self._driver = driver
        self._silent_seconds = silent_seconds

    def check(self) -> health.Finding:
        missing: list[health.Missing] = []
        if not self._is_registered():
            missing.append(health.Missing('registration', 'no conductor has registered this host'))
        why_away = self._broker.why_away(self._silent_seconds)
        if why_away is not None:
            missing.append(health.Missing('broker', why_away))
        else:
            missing += self._ask_conductor()
        why_unusable = self._driver.why_unusable()
        if why_unusable is not None:
            missing.append(health.Missing('instances_path', why_unusable))
        ages = self._broker.answered('broker')
        if (age := self._conductor.answered_seconds_ago()) is not None:
            ages['conductor'] = age
        return health.Finding(missing, ages)

    def _ask_conductor(self) -> list[health.Missing]:
        """Ask a conductor that has not answered for a while; an idle compute asks it nothing."""
        age = self._conductor.answered_seconds_ago()
        if age is not None and age < ASK_AFTER_SECONDS:
            return []
        try:
            self._conductor.ask(ASK_SECONDS)
        except exception.PrecacheError as exc:
            since = 'so far' if age is None else f'for {age:.0f} s'
            return [health.Missing('conductor', f'no answer {since}: {exc}')]
        return []
