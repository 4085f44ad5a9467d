# SPDX-License-Identifier: Apache-2.0
"""Serves one claimed host: calls it for its due jobs, one long call after the other."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Protocol

from nova_precache import context, exception, model
from nova_precache.cells import breaker
from nova_precache.compute import rpcapi
from nova_precache.conductor import companions, job_access, tracker
from nova_precache.db import jobs
from nova_precache.db.job import claim as job_claim, outcome as job_outcome
from nova_precache.image import service

LOG = logging.getLogger(__name__)

# After these outcomes, the other jobs of the host would fail, too.
_HOST_IS_LEFT = frozenset({model.Retry.BACKOFF, model.Retry.LATER})
_ASK = jobs.NextJobResult(job_outcome.STALE)


class _Unconfirmed(Exception):
    """A compute did nothing, because no conductor confirmed the call."""


class ComputeClient(Protocol):
    """Calls a compute; implemented by ``compute.rpcapi.ComputeAPI``."""

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        """See ``compute.rpcapi.ComputeAPI.cache_image``."""


class HostWorker:
    """Serves a claim until no job is due on its host.

    :param why_down: returns why the host of an assignment must not be called, None if it may;
        raises ``CellUnreachable`` or ``HostOccupied`` if that is unknown
    :param computes: returns the client of a cell by its uuid
    :param access: returns the image endpoint and a fresh token for a call
    :param moving_seconds: a transfer without progress for so long does not move
    :ivar slots: returns those of the conductor, set by its dispatcher; without them, no host
        gives way to another
    """

    def __init__(
        self,
        conductor_id: str,
        job_store: jobs.Jobs,
        why_down: Callable[[jobs.Assignment], str | None],
        track: tracker.Tracker,
        computes: Callable[[str], ComputeClient],
        images: service.ImageService,
        access: Callable[[], tuple[str | None, str | None]],
        breakers: breaker.CellBreakers,
        moving_seconds: float,
    ) -> None:
        self._conductor_id = conductor_id
        self._jobs = job_store
        self._why_down = why_down
        self._tracker = track
        self._computes = computes
        self._job_access = job_access.JobAccess(job_store, images, track)
        self._companions = companions.CompanionLookup(images)
        self._access = access
        self._breakers = breakers
        self._moving_seconds = moving_seconds
        self.slots: Callable[[], job_claim.Slots | None] = lambda: None

    def serve(
        self,
        claim: job_claim.Claim,
        is_stopping: Callable[[], bool],
        first: jobs.Assignment | None = None,
    ) -> None:
        """Call the host for each of its due jobs, then release it.

        Between two calls it gives way to a host that comes first; its other jobs wait. A job
        that is assigned already is called even if the conductor is about to stop.

        :param first: the job that was assigned with the claim
        """
        result = dataclasses.replace(_ASK, assignment=first)
        try:
            while not result.is_over:
                # A database outage before a call repeats the step afterwards.
                step = functools.partial(self._step, claim, result.assignment, is_stopping)
                result = self._tracker.database_wait.wait_out(step)
            if result.gave_way_to is not None:
                LOG.info('Host %s gives its slot to host %s', claim.host, result.gave_way_to)
        finally:
            if not result.is_over:
                self._jobs.release(self._conductor_id, [claim.host])

    def _step(
        self,
        claim: job_claim.Claim,
        assignment: jobs.Assignment | None,
        is_stopping: Callable[[], bool],
    ) -> jobs.NextJobResult:
        if assignment is not None:
            return self._attempt(assignment, is_stopping)
        return self._jobs.next_job(
            self._conductor_id, claim.host, goes_on=not is_stopping(), slots=self.slots()
        )

    def _attempt(
        self, assignment: jobs.Assignment, is_stopping: Callable[[], bool]
    ) -> jobs.NextJobResult:
        """Make one attempt, and return the next job."""
        terms = assignment.terms
        with context.bind_request_id(terms.request_id, terms.global_request_id):
            return self._check_and_call(assignment, is_stopping)

    def _check_and_call(
        self, assignment: jobs.Assignment, is_stopping: Callable[[], bool]
    ) -> jobs.NextJobResult:
        if assignment.attempts > 1 and not assignment.joins:
            if not self._is_wanted(assignment):
                return _ASK
            terms = self._jobs.terms(assignment.job_id)  # the check took time: reload them
            assignment = dataclasses.replace(assignment, terms=terms)
        try:
            why_down = self._why_down(assignment)
        except (exception.CellUnreachable, exception.HostOccupied) as exc:
            return self._leave(assignment, exc)
        if why_down is not None:
            return self._leave_down_host(assignment, why_down)
        return self._call(assignment, is_stopping)

    def _leave_down_host(self, assignment: jobs.Assignment, why: str) -> jobs.NextJobResult:
        """Postpone a job until its host is back, if its requests wait for it; else fail it."""
        if assignment.terms.waits_for_host:
            self._tracker.postpone(assignment, why)
            return _ASK  # so that its other jobs wait, too, and the host is not claimed again
        return self._leave_host(assignment, _error(why))

    def _leave(
        self, assignment: jobs.Assignment, why: exception.CellUnreachable | exception.HostOccupied
    ) -> jobs.NextJobResult:
        """Postpone or fail a job whose host or cell must not be called for now."""
        if isinstance(why, exception.CellUnreachable):
            return self._leave_cell(assignment, str(why))
        if why.is_lost:
            self._breakers.succeeded(assignment.cell_uuid)  # its broker took the call
        is_attempt = why.is_lost or assignment.joins
        self._tracker.postpone_occupied(assignment, str(why), why.seconds, is_attempt)
        return _ASK  # so that its other jobs wait, too

    def _leave_host(
        self, assignment: jobs.Assignment, outcome: model.ImageOutcome
    ) -> jobs.NextJobResult:
        return self._tracker.record_and_get_next(
            self._conductor_id, assignment, outcome, goes_on=False
        )

    def _call(
        self, assignment: jobs.Assignment, is_stopping: Callable[[], bool]
    ) -> jobs.NextJobResult:
        """Call the host, and repeat a call that timed out while bytes still arrive.

        A repeated call joins the transfer under a newer epoch; it does not count as an
        attempt. Every error becomes the outcome of an attempt, else the job would be due again
        at once. A conductor that stops may lose a compute's query: so the first unconfirmed
        call is repeated, too.
        """
        LOG.info(
            'Job %s (image %s on host %s), attempt %d: calling the host, for request %s',
            assignment.job_id,
            assignment.image_id,
            assignment.host,
            assignment.attempts,
            assignment.terms.asked_by or 'none',
        )
        may_ask_again = True
        while True:
            try:
                # After an outage, it is repeated: it needs the database before the call.
                once = functools.partial(self._call_once, assignment)
                outcome = self._tracker.database_wait.wait_out(once)
            except TimeoutError:
                again = self._assign_again(assignment)
                if again is not None and self._tracker.has_attempts_left(again):
                    assignment = again
                    continue
                assignment = again or assignment
                outcome = _error('no answer from the compute')
            except _Unconfirmed:
                again = self._repeat(assignment) if may_ask_again else None
                may_ask_again = False
                if again is not None:
                    assignment = again
                    continue
                outcome = _error('the compute could not confirm the call')
            except (exception.CellUnreachable, exception.HostOccupied) as exc:
                return self._leave(assignment, exc)
            except exception.VersionUnsupported as exc:
                outcome = model.ImageOutcome(model.TaskStatus.UNSUPPORTED, str(exc))
            except exception.PrecacheError as exc:
                outcome = _error(str(exc))
            except Exception as exc:
                LOG.exception('The call for job %s failed', assignment.job_id)
                outcome = _error(f'unexpected {type(exc).__name__}: {exc}')
            goes_on = outcome.retry not in _HOST_IS_LEFT and not is_stopping()
            return self._tracker.record_and_get_next(
                self._conductor_id, assignment, outcome, goes_on, self.slots()
            )

    def _assign_again(self, assignment: jobs.Assignment) -> jobs.Assignment | None:
        self._breakers.succeeded(assignment.cell_uuid)  # its broker took the call
        is_moving = self._tracker.database_wait.wait_out(
            lambda: self._jobs.is_moving(assignment.job_id, self._moving_seconds)
        )
        if not is_moving:
            return None
        return self._repeat(assignment)

    def _repeat(self, assignment: jobs.Assignment) -> jobs.Assignment | None:
        LOG.info('The call for job %s is repeated', assignment.job_id)
        return self._tracker.database_wait.wait_out(
            lambda: self._jobs.assign_again(self._conductor_id, assignment)
        )

    def _call_once(self, assignment: jobs.Assignment) -> model.ImageOutcome:
        endpoint, token = self._access()
        terms = assignment.terms
        call = rpcapi.CacheImageCall(
            job_id=assignment.job_id,
            epoch=assignment.epoch,
            image_id=assignment.image_id,
            image_endpoint=endpoint,
            token=token,
            options=model.TransferOptions(
                max_rate_bytes=terms.max_rate_bytes,
                deadline_seconds=terms.deadline_seconds,
                is_last_attempt=self._tracker.is_last_attempt(assignment),
            ),
            needed=self._companions.get(assignment.image_id),
            asked_by=terms.asked_by,
        )
        compute = self._computes(assignment.cell_uuid)
        outcome = compute.cache_image(context.admin_context(), assignment.host, call)
        self._breakers.succeeded(assignment.cell_uuid)
        if outcome is None:
            raise _Unconfirmed
        return outcome

    def _leave_cell(self, assignment: jobs.Assignment, why: str) -> jobs.NextJobResult:
        outcome = _error(f'cell {assignment.cell_uuid} is unreachable: {why}')
        opens = self._breakers.failed(assignment.cell_uuid)
        waits = self._jobs.terms(assignment.job_id).waits_for_host
        own = dataclasses.replace(outcome, retry=model.Retry.LATER) if waits else outcome
        result = self._leave_host(assignment, own)
        if opens:
            self._tracker.cell_failed(assignment.cell_uuid, outcome)
        return result

    def _is_wanted(self, assignment: jobs.Assignment) -> bool:
        """Check at a retry that a request wants the image and may use it; else end the job."""
        try:
            self._job_access.check(assignment.job_id, assignment.image_id)
        except (exception.ImageServiceUnavailable, exception.ImageUnauthorized):
            return True  # the attempt itself will report it
        except exception.ImageNotUsable:
            LOG.debug('No request may use the image of job %s any longer', assignment.job_id)
        if self._jobs.askers(assignment.job_id):
            return True
        unwanted = model.ImageOutcome(model.TaskStatus.SKIPPED, 'no request needs it any longer')
        self._tracker.settle(self._jobs.finish(assignment.job_id, assignment.epoch, unwanted))
        return False


def _error(reason: str) -> model.ImageOutcome:
    return model.ImageOutcome(model.TaskStatus.ERROR, reason, model.Retry.BACKOFF)
