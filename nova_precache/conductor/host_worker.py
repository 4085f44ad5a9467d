# SPDX-License-Identifier: Apache-2.0
"""The work on one claimed host: its due jobs, one long call after the other."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Protocol

from nova_precache import context, exception, model
from nova_precache.compute import rpcapi
from nova_precache.conductor import askers, breaker, companions, tracker
from nova_precache.db import jobs
from nova_precache.db.job import claim as job_claim, outcome as job_outcome
from nova_precache.image import service

LOG = logging.getLogger(__name__)

MOVING_WITHIN_SECONDS = 30.0
# After these, the host's other jobs would fare no better now.
_HOST_IS_LEFT = frozenset({model.Retry.BACKOFF, model.Retry.LATER})
_ASK = jobs.NextJobResult(job_outcome.STALE)


class _Unconfirmed(Exception):
    """A compute did nothing, since no conductor confirmed the call to it."""


class ComputeClient(Protocol):
    """What is called on a host; ``compute.rpcapi.ComputeAPI`` is the real one."""

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        """As ``compute.rpcapi.ComputeAPI.cache_image``."""


class HostWorker:
    """Serves a claim until nothing is due on its host.

    :param why_down: says why the host of an assignment is not to be called, None where it
        is; where that cannot be told it raises ``CellUnreachable``, or ``HostOccupied``
    :param computes: gives the client of a cell by its uuid
    :param access: gives the image endpoint and a fresh token for a call
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
    ) -> None:
        self._conductor_id = conductor_id
        self._jobs = job_store
        self._why_down = why_down
        self._tracker = track
        self._computes = computes
        self._askers = askers.Askers(job_store, images, track)
        self._needs = companions.Needs(images)
        self._access = access
        self._breakers = breakers

    def serve(
        self,
        claim: job_claim.Claim,
        is_stopping: Callable[[], bool],
        first: jobs.Assignment | None = None,
    ) -> None:
        """Call the host for each of its due jobs, then give it back.

        What was assigned is called though everything is about to stop.

        :param first: what was assigned already
        """
        turned = dataclasses.replace(_ASK, assignment=first)
        try:
            while not turned.is_over:
                # Whatever an outage breaks off before a call is done again after it.
                step = functools.partial(self._step, claim, turned.assignment, is_stopping)
                turned = self._tracker.database_wait.wait_out(step)
        finally:
            if not turned.is_over:
                self._jobs.release(self._conductor_id, [claim.host])

    def _step(
        self,
        claim: job_claim.Claim,
        assignment: jobs.Assignment | None,
        is_stopping: Callable[[], bool],
    ) -> jobs.NextJobResult:
        if assignment is not None:
            return self._attempt(assignment, is_stopping)
        return self._jobs.turn(self._conductor_id, claim.host, goes_on=not is_stopping())

    def _attempt(
        self, assignment: jobs.Assignment, is_stopping: Callable[[], bool]
    ) -> jobs.NextJobResult:
        """Make one attempt, and give what is next."""
        terms = assignment.terms
        with context.bind_request_id(terms.request_id, terms.global_request_id):
            return self._attempt_in_its_name(assignment, is_stopping)

    def _attempt_in_its_name(
        self, assignment: jobs.Assignment, is_stopping: Callable[[], bool]
    ) -> jobs.NextJobResult:
        if assignment.attempts > 1 and not assignment.joins:
            if not self._is_wanted(assignment):
                return _ASK
            terms = self._jobs.terms(assignment.job_id)  # to ask took a while
            assignment = dataclasses.replace(assignment, terms=terms)
        try:
            why_down = self._why_down(assignment)
        except (exception.CellUnreachable, exception.HostOccupied) as exc:
            return self._leave(assignment, exc)
        if why_down is not None:
            return self._leave_down_host(assignment, why_down)
        return self._call(assignment, is_stopping)

    def _leave_down_host(self, assignment: jobs.Assignment, why: str) -> jobs.NextJobResult:
        """Put a job off until its host is back, where it is waited for; else it has failed."""
        if assignment.terms.waits_for_host:
            self._tracker.put_off(assignment, why)
            return _ASK  # so that its other jobs wait, too, and do not have it claimed again
        return self._leave_host(assignment, _error(why))

    def _leave(
        self, assignment: jobs.Assignment, why: exception.CellUnreachable | exception.HostOccupied
    ) -> jobs.NextJobResult:
        """Leave what nothing more may be sent to for now."""
        if isinstance(why, exception.CellUnreachable):
            return self._leave_cell(assignment, str(why))
        if why.is_lost:
            self._breakers.succeeded(assignment.cell_uuid)  # its broker took the call
        is_attempt = why.is_lost or assignment.joins
        self._tracker.wait_for(assignment, str(why), why.seconds, is_attempt)
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
        """Call, and call again for as long as the bytes still move.

        A further call joins the transfer under a newer epoch; it is no attempt. Whatever
        goes wrong is the outcome of an attempt, else the job would be due again at once.
        What a conductor was asked while it stopped may be lost: so the first call that
        nobody confirmed is repeated, too.
        """
        may_ask_again = True
        while True:
            try:
                # What needs the database in it comes before the call.
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
                self._conductor_id, assignment, outcome, goes_on
            )

    def _assign_again(self, assignment: jobs.Assignment) -> jobs.Assignment | None:
        self._breakers.succeeded(assignment.cell_uuid)  # its broker took the call
        is_moving = self._tracker.database_wait.wait_out(
            lambda: self._jobs.is_moving(assignment.job_id, MOVING_WITHIN_SECONDS)
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
            needed=self._needs.of(assignment.image_id),
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
        turned = self._leave_host(assignment, own)
        if opens:
            self._tracker.cell_failed(assignment.cell_uuid, outcome)
        return turned

    def _is_wanted(self, assignment: jobs.Assignment) -> bool:
        """Check at a retry that the image may still be had by those who asked for it."""
        try:
            self._askers.check(assignment.job_id, assignment.image_id)
        except (exception.ImageServiceUnavailable, exception.ImageUnauthorized):
            return True  # the attempt itself will say so
        except exception.ImageNotUsable:
            LOG.debug('No request may have the image of job %s any more', assignment.job_id)
        if self._jobs.askers(assignment.job_id):
            return True
        unwanted = model.ImageOutcome(model.TaskStatus.SKIPPED, 'no request wants it any more')
        self._tracker.settle(self._jobs.finish(assignment.job_id, assignment.epoch, unwanted))
        return False


def _error(reason: str) -> model.ImageOutcome:
    return model.ImageOutcome(model.TaskStatus.ERROR, reason, model.Retry.BACKOFF)
