# SPDX-License-Identifier: Apache-2.0
"""Records outcomes, as the only place that does; announces the changes after the commit."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterable

from nova_precache import context, exception, model, reasons
from nova_precache.conductor import database_wait, retry
from nova_precache.db import jobs, request_actions, requests
from nova_precache.db.job import claim as job_claim, outcome as job_outcome

LOG = logging.getLogger(__name__)

CELL_BATCH_JOBS = 500
CACHED_REQUESTS = 1000


@dataclasses.dataclass(frozen=True)
class _Traits:
    """What never changes about a request.

    :ivar is_guarded: outcomes can stop the rest of the request: canaries or a failure limit
    """

    is_guarded: bool
    pin_id: str | None


class Tracker:
    """Records outcomes in the database.

    :param announce: called after a write that made notifications due
    :param policy: may be replaced at any time
    :param count: called with the number of tasks that the outcome of a call has ended
    :param avoid: returns the cells whose hosts must not be claimed now
    :param ended_of_pin: called with the id of a pin of whose requests a task has ended
    :ivar database_wait: waits out an outage with an outcome to record
    """

    def __init__(
        self,
        job_store: jobs.Jobs,
        request_store: requests.Requests,
        actions: request_actions.RequestActions,
        announce: Callable[[], None],
        policy: retry.RetryPolicy,
        count: Callable[[int, model.ImageOutcome], None] = lambda tasks, outcome: None,
        waiting: database_wait.DatabaseWait | None = None,
        avoid: Callable[[], Collection[str]] = tuple,
        ended_of_pin: Callable[[str], None] = lambda pin_id: None,
    ) -> None:
        self.database_wait = waiting or database_wait.DatabaseWait()
        self._jobs = job_store
        self._requests = request_store
        self._actions = actions
        self._announce = announce
        self.policy = policy
        self._count = count
        self._avoid = avoid
        self._ended_of_pin = ended_of_pin
        # They never change: query them once per request, not once per task.
        self._traits = functools.lru_cache(CACHED_REQUESTS)(
            lambda request_id: _traits(request_store.outline(request_id))
        )

    def planned(self, request_id: str) -> None:
        """Settle a planned request, which has ended if the plan decided every outcome."""
        request = self._requests.get(request_id)
        LOG.info(
            'Request %s is planned: %d hosts, %d tasks',
            request.id,
            request.hosts_total,
            sum(request.counts.values()),
        )
        alone = (request_id,)  # it may be idle
        self.settle(job_outcome.Recorded(current=True, requests=alone, idle=alone))

    def attempted(self, assignment: jobs.Assignment, outcome: model.ImageOutcome) -> None:
        """Record the outcome of an attempt: final, or to be retried."""
        delay = self._delay(assignment, outcome)
        if delay is None:
            finished = self.database_wait.wait_out(
                lambda: self._jobs.finish(assignment.job_id, assignment.epoch, outcome)
            )
            self._settle_final(assignment, finished, outcome)
            return
        self._record_retry(assignment, outcome, delay)

    def _delay(self, assignment: jobs.Assignment, outcome: model.ImageOutcome) -> float | None:
        """Return the seconds until the next attempt; None if the outcome is final."""
        others_wait = outcome.is_slow and self.database_wait.wait_out(
            lambda: self._jobs.others_wait(assignment.job_id, assignment.epoch, self._avoid())
        )
        return self.policy.delay(
            outcome, assignment.attempts, assignment.mismatches, others_wait=others_wait
        )

    def record_and_get_next(
        self,
        conductor_id: str,
        assignment: jobs.Assignment,
        outcome: model.ImageOutcome,
        goes_on: bool,
        slots: job_claim.Slots | None = None,
    ) -> jobs.NextJobResult:
        """Record an outcome and, in the same step, assign the host's next job or release the host.

        Where the outcome may decide what is next, it does neither: ask again. An outcome that
        cannot be recorded ends the job with a plain reason, or it would be due again for ever.
        """
        try:
            return self._record_and_assign(conductor_id, assignment, outcome, goes_on, slots)
        except exception.DatabaseUnavailable:
            raise
        except Exception:
            LOG.exception('Recording the outcome of job %s failed', assignment.job_id)
            plain = model.ImageOutcome(model.TaskStatus.ERROR, reasons.UNRECORDED)
            return self._record_and_assign(conductor_id, assignment, plain, goes_on, slots)

    def _record_and_assign(
        self,
        conductor_id: str,
        assignment: jobs.Assignment,
        outcome: model.ImageOutcome,
        goes_on: bool,
        slots: job_claim.Slots | None,
    ) -> jobs.NextJobResult:
        delay = self._delay(assignment, outcome)
        ended = None
        if delay is None:
            ended = jobs.Finish(assignment.job_id, assignment.epoch, outcome)
        else:
            self._record_retry(assignment, outcome, delay)
        result = self.database_wait.wait_out(
            lambda: self._jobs.next_job(conductor_id, assignment.host, ended, goes_on, slots)
        )
        if ended is not None:
            self._settle_final(assignment, result.recorded, outcome)
        return result

    def _settle_final(
        self,
        assignment: jobs.Assignment,
        recorded: job_outcome.Recorded,
        outcome: model.ImageOutcome,
    ) -> None:
        self._count(len(recorded.requests), outcome)  # a request has one task of a job
        _log_end(assignment, recorded, outcome)
        self.settle(recorded)

    def postpone(self, assignment: jobs.Assignment, why: str) -> None:
        """Postpone a job until its host is back; this does not count as an attempt."""
        waits = model.ImageOutcome(model.TaskStatus.ERROR, why, model.Retry.LATER)
        self._record_retry(assignment, waits, retry.HOST_SECONDS)

    def postpone_occupied(
        self, assignment: jobs.Assignment, why: str, seconds: float, is_attempt: bool
    ) -> None:
        """Postpone a job of an occupied host; if its last attempt was lost, the job ends.

        :param seconds: how long to wait
        :param is_attempt: its call got no answer, which counts as an attempt
        """
        kind = model.Retry.BACKOFF if is_attempt else model.Retry.LATER
        waits = model.ImageOutcome(model.TaskStatus.ERROR, why, kind)
        if is_attempt and self.is_last_attempt(assignment):
            self.attempted(assignment, waits)
        else:
            self._record_retry(assignment, waits, seconds)

    def _record_retry(
        self, assignment: jobs.Assignment, outcome: model.ImageOutcome, delay: float
    ) -> None:
        recorded = self.database_wait.wait_out(
            lambda: self._jobs.retry(assignment.job_id, assignment.epoch, outcome, delay)
        )
        if recorded.current:
            LOG.info(  # a warning only if it fails for good
                'Job %s (image %s on host %s), attempt %d: %s; next attempt in %g s',
                assignment.job_id,
                assignment.image_id,
                assignment.host,
                assignment.attempts,
                outcome.reason,
                delay,
            )
            if outcome.is_slow and delay:
                self._postpone_others(assignment, outcome, delay)
        self.settle(recorded)  # the job has ended if no request wants it any more

    def _postpone_others(
        self, assignment: jobs.Assignment, outcome: model.ImageOutcome, delay: float
    ) -> None:
        """Postpone the other due jobs of a slow host, which must not take the next slot either."""
        rate = (outcome.reason or 'slow').partition(';')[0]
        why = dataclasses.replace(outcome, reason=f'another image on this host is {rate}')
        self.database_wait.wait_out(lambda: self._jobs.postpone_due(assignment.host, why, delay))

    def cell_failed(self, cell_uuid: str, outcome: model.ImageOutcome) -> None:
        """Count a failed attempt for every due job of a cell that cannot be called."""
        last = ''
        wait_out = self.database_wait.wait_out
        while batch := wait_out(
            functools.partial(self._jobs.due_in_cell, cell_uuid, CELL_BATCH_JOBS, last)
        ):
            last = batch[-1].job_id
            missed = [wait_out(functools.partial(self._missed, job, outcome)) for job in batch]
            ended = wait_out(functools.partial(self._jobs.fail_unclaimed, missed, outcome))
            for job, recorded in zip(batch, ended, strict=True):
                _log_end(job, recorded, outcome)
            self.settle(*ended)

    def _missed(self, job: jobs.Assignment, outcome: model.ImageOutcome) -> jobs.MissedCall:
        delay = self.policy.delay(outcome, job.attempts + 1, job.mismatches)
        if delay is None and self._jobs.terms(job.job_id).waits_for_host:
            delay = self.policy.max_delay_seconds
        return jobs.MissedCall(job.job_id, job.attempts, delay)

    def has_attempts_left(self, assignment: jobs.Assignment) -> bool:
        """Return whether the running attempt is within the policy's limit."""
        return assignment.attempts <= self.policy.max_attempts

    def is_last_attempt(self, assignment: jobs.Assignment) -> bool:
        """Return whether the job ends with the running attempt, whatever its outcome."""
        return self.policy.is_last(assignment.attempts)

    def settle(self, *recorded: job_outcome.Recorded) -> None:
        """Act on committed outcomes: check guarded requests, complete idle ones, announce."""
        self.database_wait.wait_out(lambda: self._settle(job_outcome.together(recorded)))

    def _settle(self, settled: job_outcome.Recorded) -> None:
        guarded = [each for each in settled.requests if self._traits(each).is_guarded]
        if guarded:
            settled = job_outcome.together([settled, self._actions.check(guarded)])
        self.complete(settled.idle)
        if settled.requests:
            self._announce()
        for pin_id in {self._traits(each).pin_id for each in settled.requests}:
            if pin_id is not None:
                self._ended_of_pin(pin_id)

    def complete(self, request_ids: Iterable[str]) -> None:
        """End those of the requests that have nothing in flight."""
        for request_id in request_ids:
            if self._requests.complete(request_id):
                request = self._requests.get(request_id)
                with context.bind_request_id(request.request_id, request.global_request_id):
                    _log_request_end(request)
                self._announce()

    def opened(self, request_id: str) -> None:
        """Log that the window of a request has opened."""
        request = self._requests.outline(request_id)
        with context.bind_request_id(request.request_id, request.global_request_id):
            LOG.info('Request %s may start: its not_before has passed', request_id)

    def failed(self, request_id: str) -> None:
        """Log and announce a request that failed without a plan."""
        _log_request_end(self._requests.get(request_id))
        self._announce()


def _log_end(
    assignment: jobs.Assignment, recorded: job_outcome.Recorded, outcome: model.ImageOutcome
) -> None:
    """Log the one line about the end of a job, if this outcome has ended it."""
    if recorded.requests:
        LOG.log(
            logging.WARNING if outcome.is_failure else logging.INFO,
            'Job %s (image %s on host %s), attempt %d ended for request %s: %s',
            assignment.job_id,
            assignment.image_id,
            assignment.host,
            assignment.attempts,
            model.first_of(recorded.requests),
            outcome.line,
        )


def _log_request_end(request: model.CacheRequest) -> None:
    is_failure = request.status not in (
        model.RequestStatus.COMPLETED,
        model.RequestStatus.CANCELLED,
    )
    LOG.log(
        logging.WARNING if is_failure else logging.INFO,
        'Request %s is %s: %s%s',
        request.id,
        request.status,
        dict(request.counts),
        f', {request.reason}' if request.reason else '',
    )


def _traits(request: model.CacheRequest) -> _Traits:
    options = request.options
    return _Traits(options.canary is not None or options.max_failures is not None, request.pin_id)
