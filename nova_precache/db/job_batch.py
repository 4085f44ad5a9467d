# SPDX-License-Identifier: Apache-2.0
"""Calls of workers and computes that arrive together, executed in one transaction.

Each statement covers all of them: batching lowers the number of statements per task. Locks
are taken in the global order: the counter, claims, jobs, requests. So all jobs that may be
called are chosen and locked before the first request.
"""

import collections
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import (
    call,
    claim as job_claim,
    finish as job_finish,
    host_limits,
    locking,
    outcome as job_outcome,
    share,
)
from nova_precache.db.request import rollout


@dataclasses.dataclass(frozen=True)
class NextJobRequest:
    """A worker's call on its host has ended, and it asks for the next job.

    :ivar ended: outcome of its call
    :ivar goes_on: False to release the host
    :ivar repeated: the job whose call timed out while its bytes moved: only this job may be
        called, and the host is not released if it is not
    :ivar slots: those of the conductor, if the host may give way to another one
    """

    conductor_id: str
    host: str
    ended: job_finish.Finish | None = None
    goes_on: bool = True
    repeated: str | None = None
    slots: job_claim.Slots | None = None


@dataclasses.dataclass(frozen=True)
class NextJobResult:
    """The outcome as recorded, and the next job of the host.

    :ivar assignment: the next call, if a job is due on the host
    :ivar is_over: the host was released
    :ivar gave_way_to: the host that comes first, if that is why it was released
    """

    recorded: job_outcome.Recorded
    assignment: call.Assignment | None = None
    is_over: bool = False
    gave_way_to: str | None = None


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A claim and its first call; None if that is to be requested separately."""

    claim: job_claim.Claim
    first: call.Assignment | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """What one thread submits, or what several submitted at the same moment.

    :ivar claims: at most one, as two would want the same free hosts
    """

    begins: Sequence[call.Begin] = ()
    finishes: Sequence[job_finish.Finish] = ()
    next_jobs: Sequence[NextJobRequest] = ()
    claims: Sequence[job_claim.ClaimRequest] = ()

    def keys(self) -> set[str]:
        """Return the jobs and hosts that it concerns: no others of the same batch may share one."""
        about: list[str | None] = [each.job_id for each in self.begins]
        about += [each.job_id for each in self.finishes]
        for each in self.next_jobs:
            about += [each.host, each.repeated, each.ended.job_id if each.ended else None]
        about += ['' for _ in self.claims]
        return {key for key in about if key is not None}


@dataclasses.dataclass(frozen=True)
class BatchResult:
    """The results of all members of a batch.

    :ivar begun: jobs whose calls still counted
    :ivar recorded: by job, of outcomes that still counted
    :ivar next_jobs: by host
    """

    begun: Collection[str]
    recorded: Mapping[str, job_outcome.Recorded]
    next_jobs: Mapping[str, NextJobResult]
    claimed: Sequence[Claimed]


_GUARDED = sa.select(models.CacheRequest.id).where(
    models.CacheRequest.id.in_(sa.bindparam('requests', expanding=True)), rollout.is_guarded()
)


def merge(batches: Sequence[Batch]) -> Batch:
    return Batch(
        begins=[each for batch in batches for each in batch.begins],
        finishes=[each for batch in batches for each in batch.finishes],
        next_jobs=[each for batch in batches for each in batch.next_jobs],
        claims=[each for batch in batches for each in batch.claims],
    )


def execute_batch(
    session: orm.Session, batch: Batch, known: share.KnownCells | None = None
) -> BatchResult:
    """Execute all members of a batch.

    :param known: the cells with work at the last time
    """
    begins = batch.begins
    finishes = [*batch.finishes, *(each.ended for each in batch.next_jobs if each.ended)]
    wanted = next(iter(batch.claims), None)
    if batch.next_jobs or wanted:
        job_claim.lock_counter(session)
    ended = [each.job_id for each in finishes]
    hosts = _Hosts(session, batch.next_jobs, wanted, ended, known or share.KnownCells())
    jobs = [*(each.job_id for each in begins), *(each.job_id for each in finishes)]
    locked = locking.lock(session, jobs, {each.job_id: each.active_key for each in hosts.jobs})
    starting = call.to_start(session, begins, locked)
    if starting:  # together with those of ending jobs, in one order
        ending = job_finish.to_lock(session, finishes, locked)
        job_outcome.lock_requests(session, sorted({*starting, *ending}))
    recorded = job_finish.finish(session, finishes, locked)
    begun = call.begin(session, begins, locked, starting)
    next_jobs = hosts.call_or_release(recorded, locked)
    claimed = hosts.claim(wanted, locked) if wanted else []  # after hosts were released
    return BatchResult(begun, recorded, next_jobs, claimed)


# Of one transaction; the dispatcher asks again while it gets some.
_MOST_ROUNDS = 4
_NONE = job_claim.ClaimBudget(0, {})


class _Hosts:
    """The served hosts, fenced first, then called again or released; and free hosts.

    :ivar jobs: jobs that may be called on them
    """

    def __init__(
        self,
        session: orm.Session,
        served: Sequence[NextJobRequest],
        wanted: job_claim.ClaimRequest | None,
        ended: Sequence[str],
        known: share.KnownCells,
    ) -> None:
        self._session = session
        self._served = served
        self._ended = ended
        self._known = known
        self._held: dict[str, job_claim.Claim] = {}
        for conductor_id, hosts in _by_conductor([each for each in served if each.goes_on]).items():
            self._held.update(job_claim.fence(session, conductor_id, hosts))
        may_give_way = any(each.slots is not None and each.goes_on for each in served)
        self._budget = job_claim.budget(session) if wanted is not None or may_give_way else _NONE
        given_back = sum(self._may_hold_stream(each.host) for each in served)
        free = 0 if wanted is None else self._budget.free(wanted, given_back)
        over = {
            each.ended.job_id: each.ended.epoch
            for each in served
            if each.ended and each.host in self._held
        }
        self._limits = host_limits.load(session, over) if served or free else host_limits.NONE
        repeated = {each.host: each.repeated for each in served if each.repeated is not None}
        self._chosen = dict(call.choose(session, list(self._held), ended, repeated, self._limits))
        self._leaving = [
            each.host
            for each in served
            if each.host not in self._chosen
            and each.repeated is None
            and (each.host in self._held or not each.goes_on)
            and self._may_hold_stream(each.host)
        ]
        # Without the hosts that leave: else their cells would not get the slots that become free.
        self._loads = collections.Counter(self._budget.by_cell)
        self._loads.subtract(
            self._held[host].cell_uuid for host in self._leaving if host in self._held
        )
        self._free: dict[str, share.Candidate] = {}
        self._first: dict[str, call.DueJob] = {}
        if wanted is not None and free:
            self._choose_free(share.Search(free, wanted.avoid_cells, self._loads))
        self._gave_way = self._give_way(wanted is not None) if may_give_way else {}
        self.jobs = [*self._chosen.values(), *(self._first.values() if wanted else ())]

    def _choose_free(self, search: share.Search) -> None:
        """Choose free hosts and their first jobs; each choice counts against the limits."""
        loads = collections.Counter(search.loads)
        for _ in range(_MOST_ROUNDS):
            left = search.count - len(self._free)
            if left <= 0:
                return
            found = share.most_urgent(
                self._session,
                dataclasses.replace(search, count=left, loads=loads),
                self._limits,
                self._known,
                self._free,
            )
            chosen = call.choose(
                self._session, list(found), self._ended, {}, self._limits, until_saturated=True
            )
            self._first.update(chosen)
            self._free.update((host, found[host]) for host in chosen)
            loads.update(found[host].cell_uuid for host in chosen)
            if not chosen or not self._limits:
                return

    def _give_way(self, is_claiming: bool) -> Mapping[str, str]:
        """Map the served hosts that give their slots to others that come first, to those.

        Others are chosen as by the next claim, so that it takes each freed slot. They get the
        free slots first.

        :param is_claiming: they are chosen already
        """
        serving = [
            share.Serving(
                each.host, self._held[each.host].cell_uuid, self._chosen[each.host].priority
            )
            for each in self._served
            if each.slots is not None and self._may_give_way(each)
        ]
        slots = next((each.slots for each in self._served if each.slots is not None), None)
        if slots is None or not serving:
            return {}
        free = slots.limit - self._budget.streams + len(self._leaving)
        if not 0 <= free < job_claim.MOST_HOSTS:
            return {}
        if not is_claiming:
            count = min(free + len(serving), max(free, slots.most), job_claim.MOST_HOSTS)
            least = share.least_that_counts(serving, self._loads)
            self._choose_free(share.Search(count, slots.avoid_cells, self._loads, least))
        others = list(self._free.values())
        loads = self._loads.copy()
        loads.update(each.cell_uuid for each in others[:free])
        gave_way = share.give_way(serving, others[free:], loads)
        for host in gave_way:
            del self._chosen[host]
        return gave_way

    def _may_give_way(self, request: NextJobRequest) -> bool:
        """Return whether the next call of a host is one that may wait, and would free a stream.

        A call that joins a transfer may not wait.
        """
        chosen = self._chosen.get(request.host)
        is_waiting = chosen is not None and not chosen.joins and request.repeated is None
        return is_waiting and self._may_hold_stream(request.host)

    def _may_hold_stream(self, host: str) -> bool:
        """Return whether a served host holds a stream, as far as its claim was read."""
        claim = self._held.get(host)
        return claim is None or claim.holds_stream

    def call_or_release(
        self,
        recorded: Mapping[str, job_outcome.Recorded],
        locked: Mapping[str, locking.Locked],
    ) -> Mapping[str, NextJobResult]:
        """Assign each served host its next job, or release it."""
        held_up = self._held_up(recorded)
        going_on = {host: each for host, each in self._held.items() if host not in held_up}
        assigned = self._assign(self._chosen, going_on, locked)
        over = {
            each.host: each
            for each in self._served
            if each.host not in assigned and each.host not in held_up and each.repeated is None
        }
        for conductor_id, hosts in _by_conductor(over.values()).items():
            job_claim.release(self._session, conductor_id, hosts)
        return {
            each.host: NextJobResult(
                _recorded(each, recorded),
                assigned.get(each.host),
                is_over=each.host in over,
                gave_way_to=self._gave_way.get(each.host) if each.host in over else None,
            )
            for each in self._served
        }

    def claim(
        self, wanted: job_claim.ClaimRequest, locked: Mapping[str, locking.Locked]
    ) -> Sequence[Claimed]:
        """Claim free hosts, and assign the first job of each."""
        if not self._free:
            return []
        # Some hosts may have been released since the first count.
        left = job_claim.budget(self._session) if self._served else self._budget
        among = {host: each.cell_uuid for host, each in self._free.items()}
        claimed = job_claim.acquire(self._session, wanted, among, left)
        first = self._assign(self._first, {claim.host: claim for claim in claimed}, locked)
        return [Claimed(claim, first.get(claim.host)) for claim in claimed]

    def _assign(
        self,
        jobs: Mapping[str, call.DueJob],
        claims: Mapping[str, job_claim.Claim],
        locked: Mapping[str, locking.Locked],
    ) -> dict[str, call.Assignment]:
        chosen = {host: job for host, job in jobs.items() if host in claims}
        epochs = {host: each.epoch for host, each in claims.items()}
        return call.assign(self._session, chosen, epochs, locked)

    def _held_up(self, recorded: Mapping[str, job_outcome.Recorded]) -> set[str]:
        """Return the hosts whose next job depends on the last outcome, by a guarded request."""
        touched = {request for each in recorded.values() for request in each.requests}
        if not touched:
            return set()
        requests = {'requests': sorted(touched)}
        guarded = set(db_session.run(self._session, _GUARDED, requests).scalars())
        return {
            each.host
            for each in self._served
            if each.goes_on and not guarded.isdisjoint(_recorded(each, recorded).requests)
        }


def _recorded(
    request: NextJobRequest, recorded: Mapping[str, job_outcome.Recorded]
) -> job_outcome.Recorded:
    return (
        job_outcome.STALE
        if request.ended is None
        else recorded.get(request.ended.job_id, job_outcome.STALE)
    )


def _by_conductor(served: Iterable[NextJobRequest]) -> Mapping[str, list[str]]:
    """Group the hosts by conductor: usually one; in tests several share a process."""
    found: dict[str, list[str]] = {}
    for each in served:
        found.setdefault(each.conductor_id, []).append(each.host)
    return found
