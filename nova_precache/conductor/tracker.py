# SPDX-License-Identifier: Apache-2.0
"""The one place that records outcomes, and announces them after the commit."""

import itertools
import logging
from collections.abc import Iterable, Sequence

from nova_precache import exception, model
from nova_precache.cells import inventory
from nova_precache.conductor import retry
from nova_precache.db import jobs, recording, requests
from nova_precache.notifications import emitter, payloads

LOG = logging.getLogger(__name__)

CELL_BATCH_JOBS = 500


class Tracker:
    """Writes what happened to the database, then tells whoever listens."""

    def __init__(
        self,
        job_store: jobs.Jobs,
        request_store: requests.Requests,
        aggregates: inventory.Inventory,
        notify: emitter.Emitter,
        policy: retry.RetryPolicy,
    ) -> None:
        self._jobs = job_store
        self._requests = request_store
        self._inventory = aggregates
        self._emitter = notify
        self._policy = policy

    def planned(self, request_id: str, hosts_done: Sequence[str]) -> None:
        """Announce a planned request, and the hosts whose outcomes the plan already knew."""
        request = self._requests.get(request_id)
        LOG.info(
            'Request %s is planned: %d hosts, %d tasks',
            request.id,
            request.hosts_total,
            sum(request.counts.values()),
        )
        self._emitter.emit('aggregate.cache_images.start', self._aggregate_payload(request))
        for index, host in enumerate(hosts_done, start=1):
            self._announce_host(request, recording.HostDone(request_id, host, index))
        self.complete([request_id])

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

    def settle(self, *recorded: recording.Recorded) -> None:
        """Announce what committed outcomes made final: hosts first, then whole requests."""
        for done in itertools.chain.from_iterable(each.hosts_done for each in recorded):
            self._announce_host(self._requests.outline(done.request_id), done)
        self.complete(sorted({request for each in recorded for request in each.requests}))

    def complete(self, request_ids: Iterable[str]) -> None:
        """End the requests that have nothing in flight, each announced by whoever ends it."""
        for request_id in request_ids:
            if self._requests.complete(request_id):
                self._announce_end(request_id)

    def failed(self, request_id: str) -> None:
        """Announce a request that ended without a plan."""
        request = self._requests.get(request_id)
        LOG.error('Request %s failed: %s', request_id, request.reason)
        self._emitter.emit('aggregate.cache_images.start', self._aggregate_payload(request))
        self._emitter.emit('aggregate.cache_images.end', self._aggregate_payload(request))

    def _announce_end(self, request_id: str) -> None:
        request = self._requests.get(request_id)
        LOG.info('Request %s is %s: %s', request.id, request.status, dict(request.counts))
        self._emitter.emit('aggregate.cache_images.end', self._aggregate_payload(request))

    def _announce_host(self, request: model.CacheRequest, done: recording.HostDone) -> None:
        outcomes = self._requests.host_outcomes(request.id, done.host)
        payload = payloads.host_progress(request, done.host, done.index, outcomes)
        self._emitter.emit('aggregate.cache_images.progress', payload)

    def _aggregate_payload(self, request: model.CacheRequest) -> model.Json:
        try:
            aggregate = self._inventory.get_aggregate(request.aggregate_id, request.aggregate_uuid)
        except exception.AggregateNotFound:
            aggregate = model.Aggregate(
                request.aggregate_id, request.aggregate_uuid, request.aggregate_name
            )
        return payloads.aggregate(aggregate, request.images)
