# SPDX-License-Identifier: Apache-2.0
"""The one place that records outcomes; what they change is announced after the commit."""

import functools
import logging
from collections.abc import Callable, Iterable

from nova_precache import context, exception, model, reasons
from nova_precache.conductor import database_wait, retry
from nova_precache.db import jobs, request_actions, requests
from nova_precache.db.job import outcome as job_outcome

LOG = logging.getLogger(__name__)

CELL_BATCH_JOBS = 500
GUARDED_REQUESTS = 1000


class Tracker:
    """Writes what happened to the database.

    :param announce: called when that wrote something to be announced
    :param policy: may be replaced at any time
    :param count: told how many tasks the outcome of a call has ended
    :ivar database_wait: waits for the database with an outcome that is to be recorded
    """

    def __init__(
        self,
        job_store: jobs.Jobs,
        request_store: requests.Requests,
        steering_store: request_actions.Steering,
        announce: Callable[[], None],
        policy: retry.RetryPolicy,
        count: Callable[[int, model.ImageOutcome], None] = lambda tasks, outcome: None,
        waiting: database_wait.DatabaseWait | None = None,
    ) -> None:
        self.database_wait = waiting or database_wait.DatabaseWait()
        self._jobs = job_store
        self._requests = request_store
        self._steering = steering_store
        self._announce = announce
        self.policy = policy
        self._count = count
        # What a request was asked with does not change: one look a request, and not one a task.
        self._is_guarded = functools.lru_cache(GUARDED_REQUESTS)(self._look_whether_guarded)

    def planned(self, request_id: str) -> None:
        """Go on with a planned request, which has ended if the plan knew every outcome."""
        request = self._requests.get(request_id)
        LOG.info(
            'Request %s is planned: %d hosts, %d tasks',
            request.id,
            request.hosts_total,
            sum(request.counts.values()),
        )
        alone = (request_id,)  # idle, it may be
        self.settle(job_outcome.Recorded(current=True, requests=alone, idle=alone))

    def attempted(self, assignment: jobs.Assignment, outcome: model.ImageOutcome) -> None:
        """Record how an attempt ended: final, or to be tried again."""
        delay = self.policy.delay(outcome, assignment.attempts, assignment.mismatches)
        if delay is None:
            finished = self.database_wait.wait_out(
                lambda: self._jobs.finish(assignment.job_id, assignment.epoch, outcome)
            )
            self._settle_final(finished, outcome)
            return
        self._record_retry(assignment, outcome, delay)

    def record_and_get_next(
        self,
        conductor_id: str,
        assignment: jobs.Assignment,
        outcome: model.ImageOutcome,
        goes_on: bool,
    ) -> jobs.NextJobResult:
        """Record it, and at the same time choose the host's next job, or give the host back.

        There is neither where the outcome decides on what is next: ask again. An outcome that
        cannot be recorded as it is ends the job with a plain reason: it would be due again at
        once, for ever.
        """
        try:
            return self._attempted_in_turn(conductor_id, assignment, outcome, goes_on)
        except exception.DatabaseUnavailable:
            raise
        except Exception:
            LOG.exception('The outcome of job %s cannot be recorded', assignment.job_id)
            plain = model.ImageOutcome(model.TaskStatus.ERROR, reasons.UNRECORDED)
            return self._attempted_in_turn(conductor_id, assignment, plain, goes_on)

    def _attempted_in_turn(
        self,
        conductor_id: str,
        assignment: jobs.Assignment,
        outcome: model.ImageOutcome,
        goes_on: bool,
    ) -> jobs.NextJobResult:
        delay = self.policy.delay(outcome, assignment.attempts, assignment.mismatches)
        ended = None
        if delay is None:
            ended = jobs.Finish(assignment.job_id, assignment.epoch, outcome)
        else:
            self._record_retry(assignment, outcome, delay)
        turned = self.database_wait.wait_out(
            lambda: self._jobs.turn(conductor_id, assignment.host, ended, goes_on)
        )
        if ended is not None:
            self._settle_final(turned.recorded, outcome)
        return turned

    def _settle_final(self, recorded: job_outcome.Recorded, outcome: model.ImageOutcome) -> None:
        self._count(len(recorded.requests), outcome)  # a request has one task of a job
        self.settle(recorded)

    def put_off(self, assignment: jobs.Assignment, why: str) -> None:
        """Have a job wait for its host, which is no attempt."""
        waits = model.ImageOutcome(model.TaskStatus.ERROR, why, model.Retry.LATER)
        self._record_retry(assignment, waits, retry.HOST_SECONDS)

    def wait_for(
        self, assignment: jobs.Assignment, why: str, seconds: float, is_attempt: bool
    ) -> None:
        """Have a job wait so long for its host; what was its last attempt is final.

        :param is_attempt: its last call was lost
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
            # Nothing was tried in vain where it is only put off.
            LOG.log(
                logging.INFO if outcome.retry == model.Retry.LATER else logging.WARNING,
                'Job %s (image %s on host %s), attempt %d: %s; next in %g s',
                assignment.job_id,
                assignment.image_id,
                assignment.host,
                assignment.attempts,
                outcome.reason,
                delay,
            )
        self.settle(recorded)  # nobody may want it any more, then it has ended

    def cell_failed(self, cell_uuid: str, outcome: model.ImageOutcome) -> None:
        """Count an attempt for every job of a cell that would have been called in vain."""
        last = ''
        wait_out = self.database_wait.wait_out
        while batch := wait_out(
            functools.partial(self._jobs.due_in_cell, cell_uuid, CELL_BATCH_JOBS, last)
        ):
            last = batch[-1].job_id
            missed = [wait_out(functools.partial(self._missed, job, outcome)) for job in batch]
            self.settle(*wait_out(functools.partial(self._jobs.fail_unclaimed, missed, outcome)))

    def _missed(self, job: jobs.Assignment, outcome: model.ImageOutcome) -> jobs.MissedCall:
        delay = self.policy.delay(outcome, job.attempts + 1, job.mismatches)
        if delay is None and self._jobs.terms(job.job_id).waits_for_host:
            delay = self.policy.max_delay_seconds
        return jobs.MissedCall(job.job_id, job.attempts, delay)

    def has_attempts_left(self, assignment: jobs.Assignment) -> bool:
        """Tell whether the attempt that runs is one of those that the policy allows."""
        return assignment.attempts <= self.policy.max_attempts

    def is_last_attempt(self, assignment: jobs.Assignment) -> bool:
        """Tell whether the job ends with the attempt that runs, however it ends."""
        return self.policy.is_last(assignment.attempts)

    def settle(self, *recorded: job_outcome.Recorded) -> None:
        """Go on from committed outcomes, which may have made whole requests final."""
        self.database_wait.wait_out(lambda: self._settle(job_outcome.together(recorded)))

    def _settle(self, settled: job_outcome.Recorded) -> None:
        guarded = [request for request in settled.requests if self._is_guarded(request)]
        if guarded:
            settled = job_outcome.together([settled, self._steering.check(guarded)])
        self.complete(settled.idle)
        if settled.requests:
            self._announce()

    def _look_whether_guarded(self, request_id: str) -> bool:
        return _is_guarded(self._requests.outline(request_id).options)

    def complete(self, request_ids: Iterable[str]) -> None:
        """End the requests that have nothing in flight."""
        for request_id in request_ids:
            if self._requests.complete(request_id):
                request = self._requests.get(request_id)
                with context.bind_request_id(request.request_id, request.global_request_id):
                    counts = dict(request.counts)
                    LOG.info('Request %s is %s: %s', request.id, request.status, counts)
                self._announce()

    def opened(self, request_id: str) -> None:
        """Log that a request may begin, as its window has opened."""
        request = self._requests.outline(request_id)
        with context.bind_request_id(request.request_id, request.global_request_id):
            LOG.info('Request %s may begin, its time has come', request_id)

    def failed(self, request_id: str) -> None:
        """Tell of a request that ended without a plan."""
        LOG.error('Request %s failed: %s', request_id, self._requests.get(request_id).reason)
        self._announce()


def _is_guarded(options: model.RequestOptions) -> bool:
    """Tell whether how its tasks end decides what becomes of the rest of a request."""
    return options.canary is not None or options.max_failures is not None
