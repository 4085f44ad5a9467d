# SPDX-License-Identifier: Apache-2.0
"""Finds work, claims hosts up to the limit, and hands them to workers.

The database is the truth: messages and finished work only wake the loop, which
otherwise polls every ``poll_interval_seconds``.
"""

import itertools
import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures

from nova_precache import exception
from nova_precache.cells import breaker, inventory
from nova_precache.conductor import host_worker, planner, planning, tracker
from nova_precache.db import jobs, requests
from nova_precache.db.job import claim as job_claim

LOG = logging.getLogger(__name__)

SKIP_BATCH_HOSTS = 500
LOOP_STOP_SECONDS = 5.0


class Dispatcher:
    """The claim loop and the plan loop of one conductor, and a worker for each claimed host.

    :ivar limit: Glance streams of all claimed hosts of all conductors together; it and the
        seconds may change at any time
    """

    def __init__(
        self,
        conductor_id: str,
        job_store: jobs.Jobs,
        request_store: requests.Requests,
        aggregates: inventory.Inventory,
        plans: planning.Planning,
        hosts: host_worker.HostWorker,
        track: tracker.Tracker,
        breakers: breaker.CellBreakers,
        limit: int,
        poll_seconds: float,
        stop_seconds: float,
        count_takeover: Callable[[], None] = lambda: None,
    ) -> None:
        self._conductor_id = conductor_id
        self._jobs = job_store
        self._requests = request_store
        self._inventory = aggregates
        self._planning = plans
        self._worker = hosts
        hosts.slots = self._slots
        self._tracker = track
        self._breakers = breakers
        self.limit = limit
        self.poll_seconds = poll_seconds
        self.stop_seconds = stop_seconds
        self._count_takeover = count_takeover
        self._in_progress: dict[futures.Future[None], str] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        # Claimed hosts without a stream at the last poll: they take no part of the limit.
        self._without_stream = 0
        # It adds a thread only when all are busy: one for each claimed host.
        self._pool = futures.ThreadPoolExecutor(sys.maxsize, thread_name_prefix='host')
        self._loop = threading.Thread(target=self._run, name='dispatcher')
        self._plan_wake = threading.Event()
        self._planner = threading.Thread(target=self._run_planner, name='planner', daemon=True)
        self._next_sweep = 0.0

    def start(self) -> None:
        """Start both loops."""
        self._loop.start()
        self._planner.start()

    def wake(self) -> None:
        """Wake both loops to look for work now."""
        self._plan_wake.set()
        self._wake.set()

    def stop_claiming(self) -> None:
        """Stop claiming hosts; the running calls continue."""
        self._stopping.set()
        self._tracker.database_wait.give_up()
        self.wake()

    def stop(self) -> None:
        """Stop claiming, wait up to ``stop_seconds`` for running calls, release every host.

        The conductor that claims the host next joins a call that is still running.
        """
        deadline = time.monotonic() + self.stop_seconds
        self.stop_claiming()
        if self._loop.ident is not None:
            # Both may wait for a database, the planner also for the image service.
            self._loop.join(max(LOOP_STOP_SECONDS, self.stop_seconds))
            self._planner.join(_until(deadline))
        left = futures.wait(set(self._in_progress), _until(deadline)).not_done
        if left:
            LOG.warning('Leaving %d calls in progress to another conductor', len(left))
        self._release_all()
        self._pool.shutdown(wait=False)

    def _release_all(self) -> None:
        try:
            self._jobs.release_all(self._conductor_id)
        except Exception:
            LOG.exception('Releasing the claimed hosts failed; their leases will expire')

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            for step in (self._sweep, self._claim):
                self._guarded(step)
            self._wake.wait(self.poll_seconds)

    def _run_planner(self) -> None:
        """Plan in a thread of its own: a slow image service must not hold up claims."""
        while not self._stopping.is_set():
            self._plan_wake.clear()
            self._guarded(self._plan)
            self._plan_wake.wait(self.poll_seconds)

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run one step; log a failure, such as a lost database: the next round retries it."""
        try:
            step()
        except Exception:
            LOG.exception('The dispatcher step %s failed', step.__name__)

    def _plan(self) -> None:
        is_stopping = self._stopping.is_set
        while not is_stopping() and self._planning.plan_next(is_stopping):
            self._wake.set()

    def _claim(self) -> None:
        """Claim hosts up to the limit, unless those of this conductor reach it."""
        while not self._stopping.is_set() and (
            len(self._in_progress) - self._without_stream < self.limit
        ):
            now = self._slots()
            claimed = self._jobs.claim_hosts(
                self._conductor_id, now.limit, now.avoid_cells, now.most
            )
            for each in claimed:
                self._submit(each.claim, each.first)
            if not claimed:
                return

    def _slots(self) -> job_claim.Slots:
        avoided = self._breakers.avoid()  # first: a breaker may become due in between
        most = 1 if self._breakers.has_to_probe() else self.limit
        return job_claim.Slots(self.limit, most, tuple(avoided))

    def _take_over(self) -> None:
        """Take over the expired claims of other conductors, before any new claim."""
        while not self._stopping.is_set():
            claims = self._jobs.take_over(self._conductor_id)
            for claim in claims:
                LOG.warning(
                    'Host %s is taken over from a conductor whose lease expired', claim.host
                )
                self._count_takeover()
                self._submit(claim)
            if not claims:
                return

    def _submit(self, claim: job_claim.Claim, first: jobs.Assignment | None = None) -> None:
        self._breakers.enter(claim.cell_uuid)  # before the next claim reads the cells to avoid
        done = self._pool.submit(self._worker.serve, claim, self._stopping.is_set, first)
        self._in_progress[done] = claim.host
        done.add_done_callback(lambda future: self._served(claim, future))

    def _served(self, claim: job_claim.Claim, future: futures.Future[None]) -> None:
        self._breakers.leave(claim.cell_uuid)
        self._in_progress.pop(future, None)
        error = future.exception()
        if error is not None:
            LOG.error('Serving host %s failed', claim.host, exc_info=error)
            return  # the failed work is due again at once: leave it to the next poll
        self._wake.set()

    def _sweep(self) -> None:
        """Do the periodic work that no message triggers."""
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + self.poll_seconds
        self._take_over()
        self._check_claims()
        self._skip_hosts_that_left()
        self._tracker.complete(self._requests.ids_to_complete())

    def _check_claims(self) -> None:
        """Release the hosts whose worker could not, for example during a database outage."""
        serving = set(self._in_progress.values())
        claims = self._jobs.claims(self._conductor_id)
        self._without_stream = sum(not claim.holds_stream for claim in claims)
        strays = sorted({claim.host for claim in claims} - serving)
        for host in strays:
            LOG.warning('Releasing host %s: it is claimed but has no worker', host)
        if strays:
            self._jobs.release(self._conductor_id, strays)

    def _skip_hosts_that_left(self) -> None:
        for request in self._requests.with_waiting_tasks():
            if request.aggregate_id is None:
                continue
            try:
                aggregate = self._inventory.get_aggregate(
                    request.aggregate_id, request.aggregate_uuid
                )
            except exception.AggregateNotFound:
                continue  # keep the request as planned
            waiting = set(self._requests.waiting_hosts(request.id))
            left = iter(sorted(waiting - set(aggregate.hosts)))
            while hosts := list(itertools.islice(left, SKIP_BATCH_HOSTS)):
                self._tracker.settle(self._jobs.skip_waiting(request.id, hosts, planner.LEFT))


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
