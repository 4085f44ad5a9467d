# SPDX-License-Identifier: Apache-2.0
"""The interface through which a compute calls its conductors.

The compute imports nothing of the conductor; the wiring injects a client.
"""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Protocol

from nova_precache import model
from nova_precache.compute import transfers


@dataclasses.dataclass(frozen=True)
class CacheNews:
    """An inventory report: new and changed images, and removed names.

    :ivar full: every name after ``after`` up to ``until`` that is not in ``images`` is gone;
        None stands for the first and the last name
    """

    images: Sequence[model.CachedImage]
    removed: Sequence[str] = ()
    full: bool = False
    after: str | None = None
    until: str | None = None


@dataclasses.dataclass(frozen=True)
class HostReport:
    """All that is new on a host.

    :ivar now: the database's time in the last answer of a conductor
    :ivar seconds: since that answer
    :ivar state: of the agent and its cache; None if it is not due
    """

    host: str
    agent_id: str
    now: datetime.datetime
    seconds: float
    state: model.Json | None
    progress: Sequence[transfers.Following]
    images: CacheNews | None


class Reporter(Protocol):
    """The conductor, as a compute sees it. Each method raises PrecacheError if unreachable."""

    def register(self, state: model.Json) -> model.ReportAnswer | None:
        """Register this agent for its host, and map the host to the cell.

        :returns: what the first :meth:`report` needs; None if conductors serve none
        :raises nova_precache.exception.AgentConflict: another agent has this host name
        """

    def report(self, report: HostReport) -> model.ReportAnswer:
        """Report all that is new; not retried.

        A conductor sends ``register_again`` to an agent that is not registered.

        :raises nova_precache.exception.CellUnreachable: no conductor has read it in time
        """

    def serves_reports(self) -> bool:
        """Ask a conductor whether it serves :meth:`report`."""

    def report_state(self, state: model.Json) -> None:
        """Report that this agent is alive, and the state of its cache; not answered.

        A conductor sends ``register_again`` to an agent that is not registered.
        """

    def report_progress(
        self, job_id: str, epoch: int, sequence: int, progress: model.Progress
    ) -> None:
        """Report the progress of a job; not answered, and harmless if lost."""

    def report_images(self, host: str, agent_id: str, news: CacheNews) -> None:
        """Report the cache inventory; not answered; the next full report makes up for a loss."""

    def begin_job(self, job_id: str, epoch: int, starts: bool) -> bool:
        """Ask whether this call is still current; False means that nothing may be done.

        :param starts: no transfer of the image runs here that the call could join
        :raises nova_precache.exception.AgentConflict: this agent is not registered for its host
        """

    def confirm_job(self, job_id: str, epoch: int) -> None:
        """Ask whether the image may be published for this job.

        :raises nova_precache.exception.ImageGone: no remaining request may use the image
        """

    def goodbye(self, host: str, agent_id: str, boot_id: str) -> None:
        """Report that this agent stops, so that its host counts as down at once.

        :raises nova_precache.exception.AgentConflict: it is not registered for the host
        :raises nova_precache.exception.VersionUnsupported: the conductor is older, or pinned
        """

    def get_token(self, job_id: str, epoch: int) -> str | None:
        """Fetch a fresh token for the image service, None if none is needed.

        :param job_id: the job in flight here that needs it
        :param epoch: of the newest call of that job
        :raises nova_precache.exception.TokenRefused: the job is not in flight under that epoch
        """
