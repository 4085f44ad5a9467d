# SPDX-License-Identifier: Apache-2.0
"""Calls of workers and computes that arrive together, executed in one transaction.

Each statement covers all of them: batching lowers the number of statements per task. Locks
are taken in the global order: the counter, claims, jobs, requests. So all jobs that may be
called are chosen and locked before the first request.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import (
    assign,
    begin as job_begin,
    claim as job_claim,
    finish as job_finish,
    host_limits,
    locking,
    outcome as job_outcome,
)
from nova_precache.db.request import rollout


@dataclasses.dataclass(frozen=True)
class NextJobRequest:
    """A worker's call on its host has ended, and it asks for the next job.

    :ivar ended: outcome of its call
    :ivar goes_on: False to release the host
    :ivar repeated: the job whose call timed out while its bytes moved: only this job may be
        called, and the host is not released if it is not
    """

    conductor_id: str
    host: str
    ended: job_finish.Finish | None = None
    goes_on: bool = True
    repeated: str | None = None


@dataclasses.dataclass(frozen=True)
class NextJobResult:
    """The result of a turn.

    :ivar assignment: the next call, if a job is due on the host
    :ivar is_over: the host was released
    """

    recorded: job_outcome.Recorded
    assignment: assign.Assignment | None = None
    is_over: bool = False


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A claim and its first call; None if that is to be requested separately."""

    claim: job_claim.Claim
    first: assign.Assignment | None = None


Member = job_begin.Begin | job_finish.Finish | NextJobRequest | job_claim.ClaimRequest
Result = bool | job_outcome.Recorded | NextJobResult | Sequence[Claimed]

_GUARDED = sa.select(models.CacheRequest.id).where(
    models.CacheRequest.id.in_(sa.bindparam('requests', expanding=True)), rollout.is_guarded()
)


def keys(member: Member) -> Sequence[str]:
    """Return the job and the host that a member concerns."""
    if isinstance(member, job_claim.ClaimRequest):
        return ['']  # one per batch: two would want the same free hosts
    if not isinstance(member, NextJobRequest):
        return [member.job_id]
    ended = None if member.ended is None else member.ended.job_id
    return [each for each in (member.host, ended, member.repeated) if each is not None]


def execute_batch(session: orm.Session, members: Sequence[Member]) -> list[Result]:
    """Execute all members, and return their results in the same order."""
    begins = [each for each in members if isinstance(each, job_begin.Begin)]
    turns = [each for each in members if isinstance(each, NextJobRequest)]
    finishes = [each for each in members if isinstance(each, job_finish.Finish)]
    finishes += [turn.ended for turn in turns if turn.ended is not None]
    # At most one, because of its key.
    wanted = next((each for each in members if isinstance(each, job_claim.ClaimRequest)), None)
    if turns or wanted:
        job_claim.lock_counter(session)
    hosts = _Hosts(session, turns, wanted, [each.job_id for each in finishes])
    jobs = [*(each.job_id for each in begins), *(each.job_id for each in finishes)]
    locked = locking.lock(session, jobs, {each.job_id: each.active_key for each in hosts.jobs})
    starting = job_begin.to_start(session, begins, locked)
    if starting:  # together with those of ending jobs, in one order
        ending = job_finish.to_lock(session, finishes, locked)
        job_outcome.lock_requests(session, sorted({*starting, *ending}))
    recorded = job_finish.finish(session, finishes, locked)
    begun = job_begin.begin(session, begins, locked, starting)
    turned = hosts.go_on(recorded, locked)
    results: list[Result] = []
    for each in members:
        if isinstance(each, job_begin.Begin):
            results.append(each.job_id in begun)
        elif isinstance(each, NextJobRequest):
            results.append(turned[each.host])
        elif isinstance(each, job_claim.ClaimRequest):
            results.append(hosts.claim(each, locked))  # last, after hosts were released
        else:
            results.append(recorded.get(each.job_id, job_outcome.STALE))
    return results


# Of one transaction; the dispatcher asks again while it gets some.
_MOST_ROUNDS = 4


class _Hosts:
    """The hosts of turns: fenced first, then called again or released; and free hosts.

    :ivar jobs: jobs that may be called on them
    """

    def __init__(
        self,
        session: orm.Session,
        turns: Sequence[NextJobRequest],
        wanted: job_claim.ClaimRequest | None,
        ended: Sequence[str],
    ) -> None:
        self._session = session
        self._turns = turns
        self._budget = None if wanted is None else job_claim.budget(session)
        self._epochs: dict[str, int] = {}
        for conductor_id, hosts in _by_conductor([each for each in turns if each.goes_on]).items():
            self._epochs.update(job_claim.fence(session, conductor_id, hosts))
        over = {
            each.ended.job_id: each.ended.epoch
            for each in turns
            if each.ended and each.host in self._epochs
        }
        free = 0
        if wanted is not None and self._budget is not None:
            free = self._budget.free(wanted, given_back=len(turns))
        self._limits = host_limits.load(session, over) if turns or free else host_limits.NONE
        self._ended = ended
        repeated = {each.host: each.repeated for each in turns if each.repeated is not None}
        self._chosen = dict(
            assign.choose(session, list(self._epochs), ended, repeated, self._limits)
        )
        self._free: dict[str, str] = {}
        if wanted is not None and free:
            self._choose_free(wanted, free)
        self.jobs = list(self._chosen.values())

    def _choose_free(self, wanted: job_claim.ClaimRequest, count: int) -> None:
        """Choose free hosts and their first jobs; each choice counts against the limits."""
        if self._limits:
            count = min(count, db_session.CHUNK_KEYS)
        for _ in range(_MOST_ROUNDS):
            if len(self._free) >= count:
                return
            found = job_claim.most_urgent(
                self._session, wanted.avoid_cells, count - len(self._free), self._limits, self._free
            )
            chosen = assign.choose(
                self._session, list(found), self._ended, {}, self._limits, until_saturated=True
            )
            self._chosen.update(chosen)
            self._free.update((host, found[host]) for host in chosen)
            if not chosen or not self._limits:
                return

    def go_on(
        self,
        recorded: Mapping[str, job_outcome.Recorded],
        locked: Mapping[str, locking.Locked],
    ) -> Mapping[str, NextJobResult]:
        """Assign each turn its next job, or release its host."""
        held = self._held_up(recorded)
        epochs = {host: epoch for host, epoch in self._epochs.items() if host not in held}
        assigned = self._assign(epochs, locked)
        over = [
            each
            for each in self._turns
            if each.host not in {*assigned, *held} and each.repeated is None
        ]
        for conductor_id, hosts in _by_conductor(over).items():
            job_claim.release(self._session, conductor_id, hosts)
        return {
            each.host: NextJobResult(
                _recorded(each, recorded), assigned.get(each.host), is_over=each in over
            )
            for each in self._turns
        }

    def claim(
        self, wanted: job_claim.ClaimRequest, locked: Mapping[str, locking.Locked]
    ) -> Sequence[Claimed]:
        """Claim free hosts, and assign the first job of each."""
        if not self._free:
            return []
        # Turns may have released some of their hosts since the first count.
        left = self._budget if self._budget and not self._turns else job_claim.budget(self._session)
        claimed = job_claim.acquire(self._session, wanted, self._free, left)
        first = self._assign({claim.host: claim.epoch for claim in claimed}, locked)
        return [Claimed(claim, first.get(claim.host)) for claim in claimed]

    def _assign(
        self, epochs: Mapping[str, int], locked: Mapping[str, locking.Locked]
    ) -> dict[str, assign.Assignment]:
        chosen = {host: job for host, job in self._chosen.items() if host in epochs}
        return assign.assign(self._session, chosen, epochs, locked)

    def _held_up(self, recorded: Mapping[str, job_outcome.Recorded]) -> set[str]:
        """Return the hosts whose next job depends on the last outcome, by a guarded request."""
        touched = {request for each in recorded.values() for request in each.requests}
        if not touched:
            return set()
        requests = {'requests': sorted(touched)}
        guarded = set(db_session.run(self._session, _GUARDED, requests).scalars())
        return {
            each.host
            for each in self._turns
            if each.goes_on and not guarded.isdisjoint(_recorded(each, recorded).requests)
        }


def _recorded(
    turn: NextJobRequest, recorded: Mapping[str, job_outcome.Recorded]
) -> job_outcome.Recorded:
    return (
        job_outcome.STALE
        if turn.ended is None
        else recorded.get(turn.ended.job_id, job_outcome.STALE)
    )


def _by_conductor(turns: Sequence[NextJobRequest]) -> Mapping[str, list[str]]:
    """Group the hosts by conductor: usually one; in tests several share a process."""
    found: dict[str, list[str]] = {}
    for each in turns:
        found.setdefault(each.conductor_id, []).append(each.host)
    return found
