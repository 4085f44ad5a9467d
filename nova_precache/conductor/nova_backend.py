# SPDX-License-Identifier: Apache-2.0
"""Caches images through stock nova-computes, which know no jobs or epochs and cannot be stopped.

So the conductor begins a job itself, right before the call; it does not call a host whose call
got no answer until that call must be over; and stopped work runs to its end on the host.
"""

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from nova_precache import context, exception, model
from nova_precache.cells import liveness
from nova_precache.compute import rpcapi
from nova_precache.conductor import database_wait, tracker
from nova_precache.db import host_recovery, jobs, nova_calls, request_actions

LOG = logging.getLogger(__name__)

DISCARDS = 500
# A broker may delay a call between its record in the database and its sending.
SENDING_SECONDS = 2.0
ERROR = 'nova-compute reported an error; see its log'
_UNSUPPORTED = 'the driver of nova-compute cannot cache images'


class NovaCompute(Protocol):
    """Calls a nova-compute; implemented by ``compute.novarpc.NovaComputeAPI``."""

    def probe(self) -> None:
        """See ``compute.novarpc.NovaComputeAPI.probe``."""

    def cache_images(
        self,
        ctxt: context.RequestContext,
        host: str,
        image_ids: Sequence[str],
        token: str | None,
    ) -> Mapping[str, str]:
        """See ``compute.novarpc.NovaComputeAPI.cache_images``."""


class Calls(Protocol):
    """Records the calls that were sent; implemented by ``db.nova_calls.StockCalls``."""

    def begin(
        self, job_id: str, epoch: int, host: str, over_seconds: float
    ) -> nova_calls.Begun | nova_calls.Occupied | None: ...

    def answered(self, host: str, epoch: int) -> None: ...

    def occupied(self, host: str) -> nova_calls.Occupied | None: ...


class NovaBackend:
    """The nova-computes of one cell, called as if they were computes of this service.

    :param over_seconds: seconds after which a call must be over
    :param waiting: waits out an outage with an answer to record
    """

    def __init__(
        self,
        nova: NovaCompute,
        calls: Calls,
        over_seconds: float,
        waiting: database_wait.DatabaseWait,
    ) -> None:
        self._nova = nova
        self._calls = calls
        self._over_seconds = over_seconds
        self._database_wait = waiting

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        """Request a host to cache an image, and wait for the outcome.

        The same call names its kernel and ramdisk first, as separate images.

        :returns: None if the call is no longer current
        :raises nova_precache.exception.HostOccupied: this call, or an earlier one, got no answer
        :raises nova_precache.exception.CellUnreachable: nothing was sent
        :raises nova_precache.exception.VersionUnsupported: by the pin or by the compute
        """
        self._nova.probe()
        begun = self._calls.begin(call.job_id, call.epoch, host, self._over_seconds)
        if begun is None:
            return None
        if isinstance(begun, nova_calls.Occupied):
            raise _occupied('an earlier call got no answer', begun)
        companion_ids = [each.id for each in call.needed or ()]
        image_ids = [*companion_ids, call.image_id]
        try:
            words = self._nova.cache_images(ctxt, host, image_ids, call.token)
        except (TimeoutError, exception.CellUnreachable) as exc:
            raise self._lost(host) from exc
        except exception.PrecacheError:  # this is an answer, too
            self._record_answer(host, call.epoch)
            raise
        self._record_answer(host, call.epoch)
        return _outcome_of_all([(each, words.get(each)) for each in image_ids], begun.bytes_total)

    def _record_answer(self, host: str, epoch: int) -> None:
        """Record that a call is over: its caller would repeat it after an outage."""
        self._database_wait.wait_out(lambda: self._calls.answered(host, epoch))

    def _lost(self, host: str) -> exception.HostOccupied:
        why = 'no answer from nova-compute'
        occupied = self._database_wait.wait_out(lambda: self._calls.occupied(host))
        if occupied is None:
            return exception.HostOccupied(why, 0, is_lost=True)
        return _occupied(why, occupied, is_lost=True)


def _occupied(
    why: str, occupied: nova_calls.Occupied, is_lost: bool = False
) -> exception.HostOccupied:
    return exception.HostOccupied(
        f'{why}; the host may still be working on it and is not called before '
        f'{occupied.until:%Y-%m-%dT%H:%M:%SZ}',
        occupied.seconds,
        is_lost=is_lost,
    )


def _outcome_of_all(
    words: Sequence[tuple[str, str | None]], size_bytes: int | None
) -> model.ImageOutcome:
    """Combine the results of an image's companions and, as the last one, of the image."""
    outcomes = [outcome_of(word, size_bytes) for _, word in words]
    for (image_id, _), outcome in zip(words[:-1], outcomes[:-1], strict=True):
        if outcome.status not in model.TASK_SUCCEEDED:
            reason = f'kernel or ramdisk {image_id}: {outcome.reason}'
            return dataclasses.replace(outcome, reason=reason)
    cached = [each for each in outcomes if each.status == model.TaskStatus.CACHED]
    is_there = outcomes[-1].status == model.TaskStatus.EXISTING
    return cached[0] if is_there and cached else outcomes[-1]


def outcome_of(word: str | None, size_bytes: int | None) -> model.ImageOutcome:
    """Convert the result word of a nova-compute for an image to an outcome.

    A missing or unknown word counts as an error: the image is not known to be cached.

    :param size_bytes: of the image, None if unknown
    """
    if word == model.TaskStatus.CACHED:
        return model.ImageOutcome(word, bytes_done=size_bytes or 0, bytes_total=size_bytes)
    if word == model.TaskStatus.EXISTING:
        return model.ImageOutcome(word, bytes_total=size_bytes)
    if word == model.TaskStatus.UNSUPPORTED:
        return model.ImageOutcome(word, _UNSUPPORTED)
    return model.ImageOutcome(model.TaskStatus.ERROR, ERROR, model.Retry.BACKOFF)


class NovaStopOrders:
    """Carries out stop orders: no nova-compute can be stopped, so only the record changes.

    A job whose call a conductor waits for keeps the outcome of that call.

    :param freed: called when waiting jobs may continue
    """

    def __init__(
        self,
        store: request_actions.RequestActions,
        job_store: jobs.Jobs,
        track: tracker.Tracker,
        freed: Callable[[], None],
    ) -> None:
        self._store = store
        self._jobs = job_store
        self._tracker = track
        self._freed = freed

    def stop_transfers(self) -> bool:
        """Record the jobs that no conductor waits for as stopped; False without stop orders."""
        orders = self._store.stop_orders()
        if not orders:
            return False
        # Only now: a host is released after the outcome of its call was recorded.
        claimed = set(self._jobs.claimed_hosts())
        for order in orders:
            if order.host not in claimed:
                LOG.info('Recording job %s of host %s as stopped', order.job_id, order.host)
                self._tracker.settle(self._store.stopped(order.job_id, order.epoch))
                self._freed()
        return True

    def change_transfers(self) -> bool:
        """Return False: calls to nova-computes have no options."""
        return False

    def discard_partials(self) -> None:
        """Leave the partial downloads of cancelled calls to Nova."""
        for discard in self._store.discards(DISCARDS):
            self._store.discarded(discard.job_id)

    def stop(self) -> None:
        """Do nothing: no order is ever sent."""


class NovaLivenessLook(Protocol):
    """Looks up which hosts can be called; implemented by ``cells.liveness.NovaLiveness``."""

    def look(self, hosts: Collection[str], seconds: float | None = None) -> liveness.Look:
        """See ``cells.liveness.NovaLiveness.look``."""


class NovaHostRecovery:
    """Makes jobs due whose hosts were down or disabled and are back."""

    def __init__(self, waiting: host_recovery.Waiting, alive: NovaLivenessLook) -> None:
        self._waiting = waiting
        self._liveness = alive

    def hasten(self) -> int:
        """Make such jobs due now; return their number."""
        hosts = self._waiting.hosts()
        if not hosts:
            return 0
        look = self._liveness.look(hosts, liveness.BRIEF_SECONDS)
        away = {*look.down, *look.unknown, *look.settling}
        return self._waiting.hasten([host for host in hosts if host not in away])
