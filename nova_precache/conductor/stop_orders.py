# SPDX-License-Identifier: Apache-2.0
"""Orders computes to stop transfers, to change their options, and to discard partial downloads.

The orders are in the database, for any conductor; the state here only keeps one from sending
the same order again and again. Each cell has its own threads: a host or broker that does not
answer delays no order to another cell, and those to its own cell only briefly.
"""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Collection, Hashable
from concurrent import futures
from typing import Protocol

from nova_precache import context, exception, model, outages
from nova_precache.cells import breaker
from nova_precache.conductor import tracker
from nova_precache.db import agents, jobs, request_actions
from nova_precache.db.job import stop as job_stop

LOG = logging.getLogger(__name__)

CELL_THREADS = 32
ANSWER_SECONDS = 5.0
DISCARDS = 500
# The outcome of a stopped job arrives with the call that waits for it, well within this time.
OUTCOME_SECONDS = 5.0
UNANSWERED_SECONDS = 2.0
DISCARD_UNANSWERED_SECONDS = 30.0


class SteeredCompute(Protocol):
    """Sends orders to a compute; implemented by ``compute.rpcapi.ComputeAPI``."""

    def stop_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        why: model.StopWhy,
        keep_partial: bool = False,
    ) -> bool:
        """See ``compute.rpcapi.ComputeAPI.stop_image``."""

    def change_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        change: model.OptionChange,
    ) -> bool:
        """See ``compute.rpcapi.ComputeAPI.change_image``."""

    def forget_image(self, ctxt: context.RequestContext, host: str, image_id: str) -> bool:
        """See ``compute.rpcapi.ComputeAPI.forget_image``."""


class StopOrders:
    """Sends the orders of one conductor, and records their results.

    :param computes: returns the client of a cell by its uuid
    :param clock: monotonic seconds
    :param freed: called when waiting jobs may continue
    """

    def __init__(
        self,
        store: request_actions.RequestActions,
        job_store: jobs.Jobs,
        agent_store: agents.Agents,
        track: tracker.Tracker,
        computes: Callable[[str], SteeredCompute],
        breakers: breaker.CellBreakers,
        clock: Callable[[], float],
        freed: Callable[[], None],
    ) -> None:
        self._store = store
        self._jobs = job_store
        self._agents = agent_store
        self._tracker = track
        self._computes = computes
        self._breakers = breakers
        self._freed = freed
        self._stops = CellCallPool(breakers, clock, UNANSWERED_SECONDS)
        self._changes = CellCallPool(breakers, clock, UNANSWERED_SECONDS)
        self._discards = CellCallPool(breakers, clock, DISCARD_UNANSWERED_SECONDS)
        self._idle_once: set[Hashable] = set()

    def stop_transfers(self) -> bool:
        """Order computes to stop the transfers that no request wants; False if there are none."""
        orders = self._store.stop_orders()
        keys = {_key(order) for order in orders}
        self._stops.forget_all_but(keys)
        self._idle_once &= keys
        if not orders:
            return False
        # Only now: a host is released after the outcome of its call was recorded.
        claimed = set(self._jobs.claimed_hosts())
        down = self._agents.down({order.host for order in orders})
        for order in orders:
            if order.host not in down:
                tell = functools.partial(self._stop, order, order.host in claimed)
                self._stops.run(_key(order), order.cell_uuid, tell)
        for order in orders:
            if order.host in down:
                self._has_stopped(order, down[order.host])
        return True

    def change_transfers(self) -> bool:
        """Send computes the options that changed after their calls; False if all have them.

        A host that is down is left out: its next call has the current options.
        """
        orders = self._store.change_orders()
        down = self._agents.down({order.host for order in orders})
        orders = [order for order in orders if order.host not in down]
        self._changes.forget_all_but({_change_key(order) for order in orders})
        for order in orders:
            change = functools.partial(self._change, order)
            self._changes.run(_change_key(order), order.cell_uuid, change)
        return bool(orders)

    def discard_partials(self) -> None:
        """Order hosts to remove the partial downloads of cancelled transfers."""
        discards = self._store.discards(DISCARDS)
        self._discards.forget_all_but({discard.job_id for discard in discards})
        if not discards:
            return
        down = self._agents.down({discard.host for discard in discards})
        for discard in discards:
            if discard.host in down:
                self._leave_to_age(discard, down[discard.host])
            else:
                forget = functools.partial(self._discard, discard)
                self._discards.run(discard.job_id, discard.cell_uuid, forget)

    def stop(self) -> None:
        """Stop sending orders; do not wait for hosts that have not answered."""
        self._stops.stop()
        self._changes.stop()
        self._discards.stop()

    def _stop(self, order: job_stop.StopOrder, is_waited_for: bool) -> float:
        """Send an order; return the seconds after which it may be sent again.

        :param is_waited_for: a conductor holds the host, and may wait for the outcome. A compute
            that is idle may then just have sent the outcome: the job counts as stopped only if
            the compute is idle at a second order, too.
        """
        try:
            was_at_work = self._computes(order.cell_uuid).stop_image(
                context.admin_context(),
                order.host,
                order.job_id,
                sys.maxsize if order.epoch is None else order.epoch,
                order.why,
                order.keep_partial,
            )
        except (exception.VersionUnsupported, exception.CellNotFound) as exc:
            self._has_stopped(order, f'it cannot be stopped and runs to its end: {exc}')
            return OUTCOME_SECONDS
        self._breakers.succeeded(order.cell_uuid)
        if was_at_work:
            LOG.info('Stopped job %s of host %s: %s', order.job_id, order.host, order.why)
        elif is_waited_for and _key(order) not in self._idle_once:
            self._idle_once.add(_key(order))
        else:
            self._has_stopped(order, 'the host is not working on it')
        return OUTCOME_SECONDS if is_waited_for else 0

    def _has_stopped(self, order: job_stop.StopOrder, why: str) -> None:
        LOG.info('Recording job %s of host %s as stopped: %s', order.job_id, order.host, why)
        self._tracker.settle(self._store.stopped(order.job_id, order.epoch))
        self._freed()

    def _change(self, order: job_stop.ChangeOrder) -> float:
        try:
            was_running = self._computes(order.cell_uuid).change_image(
                context.admin_context(), order.host, order.job_id, order.epoch, order.change
            )
        except (exception.VersionUnsupported, exception.CellNotFound) as exc:
            LOG.info(
                'Job %s of host %s keeps the rate and deadline of its call until it ends: %s',
                order.job_id,
                order.host,
                exc,
            )
            self._store.changed(order)
            return 0
        self._breakers.succeeded(order.cell_uuid)
        if not was_running:
            return UNANSWERED_SECONDS  # its call may still arrive, or has just ended
        LOG.info('Changed the options of job %s of host %s', order.job_id, order.host)
        self._store.changed(order)
        return 0

    def _discard(self, discard: job_stop.Discard) -> float:
        try:
            self._computes(discard.cell_uuid).forget_image(
                context.admin_context(), discard.host, discard.image_id
            )
        except exception.CellUnreachable:
            raise
        except exception.PrecacheError as exc:
            self._leave_to_age(discard, str(exc))
            return 0
        self._breakers.succeeded(discard.cell_uuid)
        self._store.discarded(discard.job_id)
        return 0

    def _leave_to_age(self, discard: job_stop.Discard, why: str) -> None:
        LOG.info(
            'The partial download of image %s stays on host %s until it expires: %s',
            discard.image_id,
            discard.host,
            why,
        )
        self._store.discarded(discard.job_id)


def _key(order: job_stop.StopOrder) -> Hashable:
    return order.job_id, order.epoch, order.why


def _change_key(order: job_stop.ChangeOrder) -> Hashable:
    return order.job_id, order.epoch, order.change.number


class CellCallPool:
    """Runs short calls to hosts: no key twice at once or again too soon, none to a dead cell.

    :param failed_seconds: seconds after which an unanswered call may be repeated
    """

    def __init__(
        self,
        breakers: breaker.CellBreakers,
        clock: Callable[[], float],
        failed_seconds: float,
    ) -> None:
        self._breakers = breakers
        self._clock = clock
        self._failed_seconds = failed_seconds
        self._lock = threading.Lock()
        self._running: set[Hashable] = set()
        self._rests_until: dict[Hashable, float] = {}
        self._pools: dict[str, futures.ThreadPoolExecutor] = {}

    def run(self, key: Hashable, cell_uuid: str, call: Callable[[], float]) -> None:
        """Make a call in a thread, unless it is running, resting or its cell is.

        :param call: returns the seconds after which it may be made again
        """
        if self._breakers.is_resting(cell_uuid):
            return
        with self._lock:
            if key in self._running or self._rests_until.get(key, 0) > self._clock():
                return
            self._running.add(key)
            pool = self._pools.get(cell_uuid) or self._add_pool(cell_uuid)
        pool.submit(self._do, key, cell_uuid, call)

    def forget_all_but(self, keys: Collection[Hashable]) -> None:
        """Drop the rest times of all other calls, which are no longer needed."""
        with self._lock:
            for key in self._rests_until.keys() - keys:
                del self._rests_until[key]

    def stop(self) -> None:
        """Start no further call; drop those that have not started."""
        with self._lock:
            for pool in self._pools.values():
                pool.shutdown(wait=False, cancel_futures=True)

    def _add_pool(self, cell_uuid: str) -> futures.ThreadPoolExecutor:
        pool = futures.ThreadPoolExecutor(CELL_THREADS, thread_name_prefix='order')
        self._pools[cell_uuid] = pool
        return pool

    def _do(self, key: Hashable, cell_uuid: str, call: Callable[[], float]) -> None:
        seconds = self._failed_seconds
        try:
            with context.bind_request_id(None):  # the host logs the call under the same id
                seconds = call()
        except TimeoutError as exc:
            self._breakers.succeeded(cell_uuid)  # its broker took the call
            LOG.warning('A host of cell %s gave no answer: %s', cell_uuid, exc)
        except exception.CellUnreachable as exc:
            if self._breakers.failed(cell_uuid) and not outages.is_logged(exc):
                LOG.warning('Cell %s is unreachable: %s', cell_uuid, exc)
        except exception.PrecacheError as exc:
            LOG.warning(
                'A host of cell %s refused a call, or its answer is invalid: %s', cell_uuid, exc
            )
        except Exception:
            LOG.exception('A call to a host of cell %s failed', cell_uuid)
        finally:
            with self._lock:
                self._running.discard(key)
                self._rests_until[key] = self._clock() + seconds
