# SPDX-License-Identifier: Apache-2.0
"""The transfers of one compute: one per image, shared by all jobs that want it.

A repeated call joins the running transfer under its newer epoch. The outcomes of
ended jobs are kept for a while and returned again, so that a lost reply does not
turn ``cached`` into ``existing``.

A job leaves its transfer when it is cancelled or paused, or when its deadline passes,
and its call returns at once. The transfer continues for the others; the last job to
leave stops it, and gets the outcome of the transfer, which may still be a success.
"""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from contextlib import AbstractContextManager

from nova_precache import exception, model, states
from nova_precache.compute import meter, options as transfer_options, outcomes
from nova_precache.transfer_control import Control

KEPT_OUTCOMES = 1000
KEPT_STOPS = 1000

Work = Callable[[model.ProgressCallback, Control], model.ImageOutcome]


@dataclasses.dataclass(eq=False)
class Subscriber:
    """A job that wants a transfer, with the epoch and options of its newest call.

    :ivar changes: number of the last change of the options since that call
    """

    epoch: int
    options: model.TransferOptions
    changes: int = 0
    deadline: threading.Timer | None = None
    outcome: futures.Future[model.ImageOutcome] = dataclasses.field(default_factory=futures.Future)

    def cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()


@dataclasses.dataclass(eq=False)
class Transfer:
    """The work on one image, and the jobs that wait for it."""

    image_id: str
    progress: model.Progress
    speed: meter.TransferMeter
    control: Control = dataclasses.field(default_factory=Control)
    followers: dict[str, Subscriber] = dataclasses.field(default_factory=dict)
    sequence: int = 0
    reported: model.Progress | None = None

    def note(self, progress: model.Progress) -> None:
        """Record the progress of the work."""
        self.speed.note(self.progress, progress)
        self.progress = progress

    def measured(self) -> model.Progress:
        """Return the progress of the work, with its current rate."""
        return dataclasses.replace(self.progress, rate_bytes=self.speed.rate())

    def stop(self, error: exception.TransferStopped) -> None:
        """Stop the work; no attempt failed, so only the error decides which files are kept."""
        self.control.is_last_attempt = False
        self.control.stop(error)

    def adjust(self) -> None:
        """Apply the combined options of the jobs that wait now."""
        wanted = [follower.options for follower in self.followers.values()]
        self.control.max_rate_bytes = transfer_options.rate_for_all(wanted)
        self.control.is_last_attempt = transfer_options.is_last_for_all(wanted)


@dataclasses.dataclass(frozen=True)
class Following:
    """One job's view of a transfer's progress, to be reported."""

    job_id: str
    epoch: int
    sequence: int
    progress: model.Progress


@dataclasses.dataclass(frozen=True)
class _Stop:
    """A stop for a job that was not running: its call of that epoch may still arrive."""

    epoch: int
    error: exception.TransferStopped


class Transfers:
    """The running transfers; thread-safe.

    :ivar ended: number of transfers that have ended
    :ivar refusal: why no transfer may begin now, None if they may
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.refusal: exception.TransferStopped | None = None
        self.ended = 0
        self._running: dict[str, Transfer] = {}
        self._kept: collections.OrderedDict[str, model.ImageOutcome] = collections.OrderedDict()
        self._stops: collections.OrderedDict[str, _Stop] = collections.OrderedDict()

    def kept_outcome(self, job_id: str) -> model.ImageOutcome | None:
        """Return the outcome of a job that ended here, None if none is kept."""
        with self._lock:
            return self._kept.get(job_id)

    def is_running(self, image_id: str) -> bool:
        """Return whether a transfer of the image is running, so that a call would join it."""
        with self._lock:
            return image_id in self._running

    def epochs(self, image_id: str) -> Mapping[str, int]:
        """Map the jobs that want the running transfer of an image to their newest epochs."""
        with self._lock:
            transfer = self._running.get(image_id)
            if transfer is None:
                return {}
            return {job_id: each.epoch for job_id, each in transfer.followers.items()}

    def aside(self, image_id: str) -> AbstractContextManager[None]:
        """Return a context whose time does not make the running transfer of an image slow."""
        with self._lock:
            transfer = self._running.get(image_id)
            return contextlib.nullcontext() if transfer is None else transfer.control.aside()

    def run(
        self,
        job_id: str,
        epoch: int,
        image_id: str,
        work: Work,
        options: model.TransferOptions | None = None,
    ) -> model.ImageOutcome:
        """Start the work or join the running transfer, and return its outcome."""
        return self._follow(job_id, epoch, image_id, work, options).result()

    def leave(self, job_id: str, epoch: int, error: exception.TransferStopped) -> bool:
        """Remove a job from its transfer, and stop the transfer if no other job wants it.

        :param epoch: of the job's call; it is refused if it arrives later; an epoch older than
            that of the running call changes nothing
        :returns: whether the job was running
        """
        with self._lock:
            running = self._running.values()
            transfer = next((each for each in running if job_id in each.followers), None)
            if transfer is None:
                self._note_stop(job_id, _Stop(epoch, error))
                return False
            if transfer.followers[job_id].epoch > epoch:
                return False
            is_last = len(transfer.followers) == 1
            if is_last:
                # A call that arrives from now on must not get this outcome.
                del self._running[transfer.image_id]
            else:
                self._part(transfer, job_id, outcomes.of_stop(error))
        if is_last:
            transfer.stop(error)
        return True

    def change(self, job_id: str, epoch: int, change: model.OptionChange) -> bool:
        """Change the options of a job while its transfer continues.

        :param epoch: of the job's call
        :param change: ignored if the job has a newer one
        :returns: whether the call was running
        """
        with self._lock:
            running = self._running.values()
            transfer = next((each for each in running if job_id in each.followers), None)
            if transfer is None or transfer.followers[job_id].epoch != epoch:
                return False
            follower = transfer.followers[job_id]
            if change.number > follower.changes:
                follower.changes = change.number
                options = dataclasses.replace(
                    follower.options,
                    max_rate_bytes=change.max_rate_bytes,
                    deadline_seconds=change.deadline_seconds,
                )
                self._set_options(job_id, follower, options)
                transfer.adjust()
            return True

    def stop(self, why: exception.TransferStopped | None = None) -> None:
        """Stop every transfer at once, and refuse new ones.

        :param why: by default, the compute is shutting down
        """
        why = why or exception.ShuttingDown('the compute is shutting down')
        with self._lock:
            if not isinstance(self.refusal, exception.ShuttingDown):
                self.refusal = why
            running = list(self._running.values())
            self._running.clear()  # a job that leaves now must not change their outcome
        for transfer in running:
            transfer.stop(why)

    def resume(self) -> None:
        """Accept transfers again, unless the compute is shutting down."""
        with self._lock:
            if not isinstance(self.refusal, exception.ShuttingDown):
                self.refusal = None

    def report_again(self) -> None:
        """Report every transfer next, whether or not it has advanced: a report was lost."""
        with self._lock:
            for transfer in self._running.values():
                transfer.reported = None

    def to_report(self) -> list[Following]:
        """Return the progress of every job whose transfer has advanced since the last time.

        A download that stalls, or waits for a lock, is reported only once, with rate 0: so the
        conductor learns that it does not move. Steps that have no progress of their own, but a
        time limit, are reported each time.
        """
        with self._lock:
            return [
                following
                for transfer in self._running.values()
                for following in _report(transfer, transfer.measured())
            ]

    def _follow(
        self,
        job_id: str,
        epoch: int,
        image_id: str,
        work: Work,
        options: model.TransferOptions | None,
    ) -> futures.Future[model.ImageOutcome]:
        with self._lock:
            if job_id in self._kept:  # it ended while the conductor confirmed this call
                return _already(self._kept[job_id])
            if self.refusal is not None:
                return _already(outcomes.of_stop(self.refusal))
            stop = self._stops.get(job_id)
            if stop is not None and epoch <= stop.epoch:
                return _already(outcomes.of_stop(stop.error))
            transfer = self._running.get(image_id) or self._transfer(image_id)
            follower = self._join(transfer, job_id, epoch, options or model.TransferOptions())
            if image_id not in self._running:
                # Not in the thread of the call: its job may leave while others still wait.
                threading.Thread(
                    target=self._do, args=(transfer, work), name=f'transfer-{image_id}', daemon=True
                ).start()
                self._running[image_id] = transfer  # only now: without a thread, none may join
            return follower.outcome

    def _transfer(self, image_id: str) -> Transfer:
        started = model.Progress(model.TaskStatus.DOWNLOADING, 0)
        return Transfer(image_id, started, meter.TransferMeter(self._clock))

    def _join(
        self, transfer: Transfer, job_id: str, epoch: int, options: model.TransferOptions
    ) -> Subscriber:
        follower = transfer.followers.setdefault(job_id, Subscriber(epoch, options))
        # An older call may arrive late, and the same one twice, after its options were changed.
        if (epoch, 0) >= (follower.epoch, follower.changes):
            follower.epoch, follower.changes = epoch, 0
            self._set_options(job_id, follower, options)
        transfer.adjust()
        transfer.reported = None  # report the current progress to the new job, too
        return follower

    def _set_options(
        self, job_id: str, follower: Subscriber, options: model.TransferOptions
    ) -> None:
        follower.options = options
        follower.cancel_deadline()
        follower.deadline = self._start_deadline(job_id, follower.epoch, options.deadline_seconds)

    def _start_deadline(
        self, job_id: str, epoch: int, seconds: float | None
    ) -> threading.Timer | None:
        if seconds is None:
            return None
        passed = exception.DeadlinePassed('the deadline passed before the image was cached')
        in_reach = max(0, min(seconds, threading.TIMEOUT_MAX))
        timer = threading.Timer(in_reach, self.leave, (job_id, epoch, passed))
        timer.daemon = True
        timer.start()
        return timer

    def _part(self, transfer: Transfer, job_id: str, outcome: model.ImageOutcome) -> None:
        follower = transfer.followers.pop(job_id)
        follower.cancel_deadline()
        transfer.adjust()
        self._keep(job_id, outcome)
        follower.outcome.set_result(outcome)

    def _do(self, transfer: Transfer, work: Work) -> None:
        try:
            outcome = work(transfer.note, transfer.control)
        except BaseException as error:  # noqa: BLE001 - raised where the calls wait
            for follower in self._end(transfer, None):
                follower.outcome.set_exception(error)
            return
        for follower in self._end(transfer, outcome):
            follower.outcome.set_result(outcome)

    def _end(self, transfer: Transfer, outcome: model.ImageOutcome | None) -> list[Subscriber]:
        with self._lock:
            if self._running.get(transfer.image_id) is transfer:
                del self._running[transfer.image_id]
            self.ended += 1
            for job_id, follower in transfer.followers.items():
                follower.cancel_deadline()
                self._keep(job_id, outcome)
            return list(transfer.followers.values())

    def _note_stop(self, job_id: str, stop: _Stop) -> None:
        self._stops[job_id] = stop
        while len(self._stops) > KEPT_STOPS:
            self._stops.popitem(last=False)

    def _keep(self, job_id: str, outcome: model.ImageOutcome | None) -> None:
        if outcome is None or outcome.retry != model.Retry.NEVER:
            return  # a later call of the job must start a new attempt
        if outcome.status in states.STOPPED:
            return  # likewise: another request may want the job meanwhile
        self._kept[job_id] = outcome
        while len(self._kept) > KEPT_OUTCOMES:
            self._kept.popitem(last=False)


def _already(outcome: model.ImageOutcome) -> futures.Future[model.ImageOutcome]:
    done: futures.Future[model.ImageOutcome] = futures.Future()
    done.set_result(outcome)
    return done


def _report(transfer: Transfer, progress: model.Progress) -> list[Following]:
    """Return a report for each waiting job, if the transfer has advanced."""
    if not _has_moved(transfer.reported, progress):
        return []
    transfer.sequence += 1
    transfer.reported = progress
    return [
        Following(job_id, follower.epoch, transfer.sequence, progress)
        for job_id, follower in transfer.followers.items()
    ]


def _has_moved(reported: model.Progress | None, progress: model.Progress) -> bool:
    if reported is None or progress.status != model.TaskStatus.DOWNLOADING:
        return True
    has_stopped = progress.rate_bytes == 0 and reported.rate_bytes != 0
    return has_stopped or progress != dataclasses.replace(reported, rate_bytes=progress.rate_bytes)
