# SPDX-License-Identifier: Apache-2.0
"""The work in hand on one compute: one transfer an image, joined by all who want it.

A repeated call joins the running transfer under its newer epoch. The outcomes of
ended jobs are kept for a while and repeated, so that a reply that was lost does
not turn ``cached`` into ``existing``.
"""

import collections
import dataclasses
import threading
from collections.abc import Callable
from concurrent import futures

from nova_precache import exception, model

KEPT_OUTCOMES = 1000


@dataclasses.dataclass
class Transfer:
    """The work on one image, and the jobs that follow it with their newest epochs."""

    image_id: str
    progress: model.Progress
    epochs: dict[str, int] = dataclasses.field(default_factory=dict)
    sequence: int = 0
    reported: model.Progress | None = None
    outcome: futures.Future[model.ImageOutcome] = dataclasses.field(default_factory=futures.Future)


@dataclasses.dataclass(frozen=True)
class Following:
    """One job's view of a transfer's progress, to be reported."""

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress


class Transfers:
    """Which images are being worked on; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_stopping = False
        self._running: dict[str, Transfer] = {}
        self._kept: collections.OrderedDict[str, model.ImageOutcome] = collections.OrderedDict()

    def kept_outcome(self, job_id: str) -> model.ImageOutcome | None:
        """Give the outcome of a job that ended here a while ago."""
        with self._lock:
            return self._kept.get(job_id)

    def is_running(self, image_id: str) -> bool:
        """Tell whether the image is being worked on."""
        with self._lock:
            return image_id in self._running

    def run(
        self,
        job_id: str,
        epoch: int,
        image_id: str,
        work: Callable[[model.ProgressCallback], model.ImageOutcome],
    ) -> model.ImageOutcome:
        """Do the work, or wait for whoever does it already; both get its outcome."""
        transfer, is_first = self._follow(job_id, epoch, image_id)
        if is_first:
            self._do(transfer, work)
        return transfer.outcome.result()

    def stop(self) -> None:
        """Have every transfer end at its next sign of progress, and start no more."""
        self.is_stopping = True

    def to_report(self) -> list[Following]:
        """Give the progress of every followed job that has come further since the last time.

        A download that stands still, or waits for a lock, has nothing to report: so the
        conductor learns that it does not move. Steps without signs of their own, which
        have a time limit, are reported each time.
        """
        with self._lock:
            moving = [each for each in self._running.values() if _has_moved(each)]
            for transfer in moving:
                transfer.sequence += 1
                transfer.reported = transfer.progress
            return [
                Following(job_id, epoch, transfer.sequence, transfer.progress)
                for transfer in moving
                for job_id, epoch in transfer.epochs.items()
            ]

    def _follow(self, job_id: str, epoch: int, image_id: str) -> tuple[Transfer, bool]:
        started = Transfer(image_id, model.Progress(model.TaskStatus.DOWNLOADING, 0))
        with self._lock:
            if job_id in self._kept:  # it ended while the conductor was asked for this call
                started.outcome.set_result(self._kept[job_id])
                return started, False
            transfer = self._running.setdefault(image_id, started)
            is_first = transfer is started
            transfer.epochs[job_id] = max(epoch, transfer.epochs.get(job_id, 0))
            transfer.reported = None  # whoever follows anew is told where it stands
            return transfer, is_first

    def _do(
        self,
        transfer: Transfer,
        work: Callable[[model.ProgressCallback], model.ImageOutcome],
    ) -> None:
        def note(progress: model.Progress) -> None:
            transfer.progress = progress
            if self.is_stopping:
                raise exception.ShuttingDown('the compute is shutting down')

        try:
            outcome = work(note)
        except BaseException as error:
            self._end(transfer, None)
            transfer.outcome.set_exception(error)
            raise
        self._end(transfer, outcome)
        transfer.outcome.set_result(outcome)

    def _end(self, transfer: Transfer, outcome: model.ImageOutcome | None) -> None:
        with self._lock:
            del self._running[transfer.image_id]
            if outcome is None or outcome.retry != model.Retry.NEVER:
                return  # the job will come again and must then be tried anew
            for job_id in transfer.epochs:
                self._kept[job_id] = outcome
            while len(self._kept) > KEPT_OUTCOMES:
                self._kept.popitem(last=False)


def _has_moved(transfer: Transfer) -> bool:
    progress = transfer.progress
    return progress != transfer.reported or progress.status != model.TaskStatus.DOWNLOADING
