# SPDX-License-Identifier: Apache-2.0
"""Tells computes to leave their transfers, and to forget what unfinished ones left.

The database says what is to be told, to any conductor; what is noted here only keeps one
from telling the same again and again. Each cell has threads of its own: a host or a
broker that gives no answer delays what is told to no other cell, and its own not for long.
"""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Collection, Hashable
from concurrent import futures
from typing import Protocol

from nova_precache import context, exception, outages
from nova_precache.compute import rpcapi
from nova_precache.conductor import breaker, tracker
from nova_precache.db import agents, jobs, request_actions
from nova_precache.db.job import stop as job_stop

LOG = logging.getLogger(__name__)

CELL_THREADS = 32
ANSWER_SECONDS = 5.0
DISCARDS = 500
# The outcome of what was stopped comes with the call that waits for it, well within these.
OUTCOME_SECONDS = 5.0
UNANSWERED_SECONDS = 2.0
DISCARD_UNANSWERED_SECONDS = 30.0


class SteeredCompute(Protocol):
    """What is told to a host; ``compute.rpcapi.ComputeAPI`` is the real one."""

    def stop_image(
        self,
        ctxt: context.RequestContext,
        host: str,
        job_id: str,
        epoch: int,
        why: rpcapi.StopWhy,
        keep_partial: bool = False,
    ) -> bool:
        """As ``compute.rpcapi.ComputeAPI.stop_image``."""

    def forget_image(self, ctxt: context.RequestContext, host: str, image_id: str) -> bool:
        """As ``compute.rpcapi.ComputeAPI.forget_image``."""


class StopOrders:
    """What one conductor has told computes, and what came of it.

    :param computes: gives the client of a cell by its uuid
    :param clock: seconds that only grow
    :param freed: called when work that waited may go on
    """

    def __init__(
        self,
        store: request_actions.Steering,
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
        self._discards = CellCallPool(breakers, clock, DISCARD_UNANSWERED_SECONDS)
        self._idle_once: set[Hashable] = set()

    def stop_transfers(self) -> bool:
        """Tell the computes what nobody wants any more; False when there is no such thing."""
        orders = self._store.stop_orders()
        keys = {_key(order) for order in orders}
        self._stops.forget_all_but(keys)
        self._idle_once &= keys
        if not orders:
            return False
        # Only now: a host is given back after the outcome of its call was recorded.
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

    def discard_partials(self) -> None:
        """Have the hosts remove what cancelled transfers left there."""
        discards = self._store.discards(DISCARDS)
        self._discards.forget_all_but({discard.job_id for discard in discards})
        if not discards:
            return
        down = self._agents.down({discard.host for discard in discards})
        for discard in discards:
            if discard.host in down:
                self._leave_to_age(discard, down[discard.host])
            else:
                forget = functools.partial(self._forget, discard)
                self._discards.run(discard.job_id, discard.cell_uuid, forget)

    def stop(self) -> None:
        """Tell nothing more; who gives no answer is not waited for."""
        self._stops.stop()
        self._discards.stop()

    def _stop(self, order: job_stop.StopOrder, is_waited_for: bool) -> float:
        """Send an order; gives the seconds after which it may be sent again.

        :param is_waited_for: some conductor holds the host, and may wait for the outcome.
            That the compute works on it no more can mean that the outcome is on its way:
            it is so only when it is told again.
        """
        try:
            was_at_work = self._computes(order.cell_uuid).stop_image(
                context.admin_context(),
                order.host,
                order.job_id,
                sys.maxsize if order.epoch is None else order.epoch,
                rpcapi.StopWhy(order.why),
                order.keep_partial,
            )
        except (exception.VersionUnsupported, exception.CellNotFound) as exc:
            self._has_stopped(order, f'it is left to end by itself, {exc}')
            return OUTCOME_SECONDS
        self._breakers.succeeded(order.cell_uuid)
        if was_at_work:
            LOG.info('Job %s of host %s is stopped: %s', order.job_id, order.host, order.why)
        elif is_waited_for and _key(order) not in self._idle_once:
            self._idle_once.add(_key(order))
        else:
            self._has_stopped(order, 'the host does not work on it')
        return OUTCOME_SECONDS if is_waited_for else 0

    def _has_stopped(self, order: job_stop.StopOrder, why: str) -> None:
        LOG.info('Job %s of host %s counts as stopped: %s', order.job_id, order.host, why)
        self._tracker.settle(self._store.stopped(order.job_id, order.epoch))
        self._freed()

    def _forget(self, discard: job_stop.Discard) -> float:
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
            'What came of image %s stays on host %s until it is too old: %s',
            discard.image_id,
            discard.host,
            why,
        )
        self._store.discarded(discard.job_id)


def _key(order: job_stop.StopOrder) -> Hashable:
    return order.job_id, order.epoch, order.why


class CellCallPool:
    """Short calls to hosts: none twice at once, none again too soon, none to a dead cell.

    :param failed_seconds: after which one that got no answer may be run again
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

    def run(self, key: Hashable, cell_uuid: str, errand: Callable[[], float]) -> None:
        """Run an errand in a thread, if it may be.

        :param errand: gives the seconds after which it may be run again
        """
        if self._breakers.is_resting(cell_uuid):
            return
        with self._lock:
            if key in self._running or self._rests_until.get(key, 0) > self._clock():
                return
            self._running.add(key)
            pool = self._pools.get(cell_uuid) or self._add_pool(cell_uuid)
        pool.submit(self._do, key, cell_uuid, errand)

    def forget_all_but(self, keys: Collection[Hashable]) -> None:
        """Forget when errands may be run again that nobody has any more."""
        with self._lock:
            for key in self._rests_until.keys() - keys:
                del self._rests_until[key]

    def stop(self) -> None:
        """Begin no more of them."""
        with self._lock:
            for pool in self._pools.values():
                pool.shutdown(wait=False, cancel_futures=True)

    def _add_pool(self, cell_uuid: str) -> futures.ThreadPoolExecutor:
        pool = futures.ThreadPoolExecutor(CELL_THREADS, thread_name_prefix='order')
        self._pools[cell_uuid] = pool
        return pool

    def _do(self, key: Hashable, cell_uuid: str, errand: Callable[[], float]) -> None:
        seconds = self._failed_seconds
        try:
            with context.bind_request_id(None):  # the host logs it under the same id
                seconds = errand()
        except TimeoutError as exc:
            self._breakers.succeeded(cell_uuid)  # its broker took the call
            LOG.warning('A host of cell %s gave no answer: %s', cell_uuid, exc)
        except exception.CellUnreachable as exc:
            if self._breakers.failed(cell_uuid) and not outages.is_logged(exc):
                LOG.warning('Cell %s is unreachable: %s', cell_uuid, exc)
        except exception.PrecacheError as exc:
            LOG.warning('A host of cell %s refused or cannot be understood: %s', cell_uuid, exc)
        except Exception:
            LOG.exception('What a host of cell %s was to be told failed', cell_uuid)
        finally:
            with self._lock:
                self._running.discard(key)
                self._rests_until[key] = self._clock() + seconds
