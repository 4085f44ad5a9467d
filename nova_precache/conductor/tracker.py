# SPDX-License-Identifier: Apache-2.0
"""The one place that records outcomes; what they change is announced after the commit."""

import itertools
import logging
from collections.abc import Callable, Iterable

from nova_precache import model
from nova_precache.conductor import retry
from nova_precache.db import jobs, recording, requests

LOG = logging.getLogger(__name__)

CELL_BATCH_JOBS = 500


class Tracker:
    """Writes what happened to the database.

    :param announce: called when that wrote something to be announced
    """

    def __init__(
        self,
        job_store: jobs.Jobs,
        request_store: requests.Requests,
        announce: Callable[[], None],
        policy: retry.RetryPolicy,
    ) -> None:
        self._jobs = job_store
        self._requests = request_store
        self._announce = announce
        self._policy = policy

    def planned(self, request_id: str) -> None:
        """Go on with a planned request, which has ended if the plan knew every outcome."""
        request = self._requests.get(request_id)
        LOG.info(
            'Request %s is planned: %d hosts, %d tasks',
            request.id,
            request.hosts_total,
            sum(request.counts.values()),
        )
        self.complete([request_id])
        self._announce()

    def attempted(self, assignment: jobs.Assignment, outcome: model.ImageOutcome) -> None:
        """Record how an attempt ended: final, or to be tried again."""
        delay = self._policy.delay(outcome, assignment.attempts, assignment.mismatches)
        if delay is None:
            self.settle(self._jobs.finish(assignment.job_id, assignment.epoch, outcome))
            return
        if self._jobs.retry(assignment.job_id, assignment.epoch, outcome, delay):
            LOG.warning(
                'Job %s (image %s on host %s), attempt %d: %s; next in %g s',
                assignment.job_id,
                assignment.image_id,
                assignment.host,
                assignment.attempts,
                outcome.reason,
                delay,
            )

    def cell_failed(self, cell_uuid: str, outcome: model.ImageOutcome) -> None:
        """Count an attempt for every job of a cell that would have been called in vain."""
        due = iter(self._jobs.due_in_cell(cell_uuid))
        while batch := list(itertools.islice(due, CELL_BATCH_JOBS)):
            missed = [self._missed(job, outcome) for job in batch]
            self.settle(*self._jobs.fail_unclaimed(missed, outcome))

    def _missed(self, job: jobs.Assignment, outcome: model.ImageOutcome) -> jobs.MissedCall:
        delay = self._policy.delay(outcome, job.attempts + 1, job.mismatches)
        return jobs.MissedCall(job.job_id, job.attempts, delay)

    def has_attempts_left(self, assignment: jobs.Assignment) -> bool:
        """Tell whether the attempt that runs is one of those that the policy allows."""
        return assignment.attempts <= self._policy.max_attempts

    def is_last_attempt(self, assignment: jobs.Assignment) -> bool:
        """Tell whether the job ends with the attempt that runs, however it ends."""
        return self._policy.is_last(assignment.attempts)

    def settle(self, *recorded: recording.Recorded) -> None:
        """Go on from committed outcomes, which may have made whole requests final."""
        touched = sorted({request for each in recorded for request in each.requests})
        self.complete(touched)
        if touched:
            self._announce()

    def complete(self, request_ids: Iterable[str]) -> None:
        """End the requests that have nothing in flight."""
        for request_id in request_ids:
            if self._requests.complete(request_id):
                request = self._requests.get(request_id)
                LOG.info('Request %s is %s: %s', request.id, request.status, dict(request.counts))
                self._announce()

    def failed(self, request_id: str) -> None:
        """Tell of a request that ended without a plan."""
        LOG.error('Request %s failed: %s', request_id, self._requests.get(request_id).reason)
        self._announce()
