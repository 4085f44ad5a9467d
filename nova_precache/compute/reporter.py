# SPDX-License-Identifier: Apache-2.0
"""What a compute tells and asks its conductors, as a protocol of its own.

The compute imports nothing of the conductor; the wiring injects a client.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from nova_precache import model


@dataclasses.dataclass(frozen=True)
class CacheNews:
    """What is in a cache, or a part of it: images that are new or have changed, names gone.

    :ivar full: what is not in ``images`` is gone, of the names that follow ``after`` up to
        ``until``; None: from the first, and to the last
    """

    images: Sequence[model.CachedImage]
    removed: Sequence[str] = ()
    full: bool = False
    after: str | None = None
    until: str | None = None


class Reporter(Protocol):
    """The conductor, as a compute sees it. Each raises PrecacheError when unreachable."""

    def register(self, state: model.Json) -> None:
        """Announce this agent and have its host mapped to the cell.

        :raises nova_precache.exception.AgentConflict: another agent has this host name
        """

    def report_state(self, state: model.Json) -> None:
        """Say that this agent is alive, and how its cache stands; not answered.

        An agent that is not registered is asked to ``register_again``.
        """

    def report_progress(
        self, job_id: str, epoch: int, sequence: int, progress: model.Progress
    ) -> None:
        """Say how far a job has come; not answered, and lost without harm."""

    def report_images(self, host: str, agent_id: str, news: CacheNews) -> None:
        """Say what is in the cache; not answered, and lost until all of it is told again."""

    def begin_job(self, job_id: str, epoch: int, starts: bool) -> bool:
        """Ask whether this call still counts; False means that nothing may be done.

        :param starts: nothing of the image's transfer runs here that the call could join
        :raises nova_precache.exception.AgentConflict: this agent is not registered for its host
        """

    def confirm_job(self, job_id: str, epoch: int) -> None:
        """Ask whether the image may be published for this job.

        :raises nova_precache.exception.ImageGone: no request is left that may have the image
        """

    def get_token(self, job_id: str, epoch: int) -> str | None:
        """Fetch a fresh token for the image service, None where none is needed.

        :param job_id: a job in flight here, which needs it
        :param epoch: of the newest call of that job
        :raises nova_precache.exception.TokenRefused: the job is not in flight under that epoch
        """
