# SPDX-License-Identifier: Apache-2.0
"""What workers and computes ask for at the same moment, done in one transaction for all.

Each statement is for all of them, so that a task costs the fewer of them the more is done
at once. Locks are taken in the order of everybody: the counter, claims, jobs, requests. So
all jobs that may be called are chosen, and locked, before the first request is.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache.db.engine import models, session as db_session
from nova_precache.db.job import (
    assign,
    begin as job_begin,
    calls,
    claim as job_claim,
    finish as job_finish,
    host_limits,
    locking,
    outcome as job_outcome,
)
from nova_precache.db.request import rollout


@dataclasses.dataclass(frozen=True)
class NextJobRequest:
    """A worker has done what it was to do on its host, and asks what is next.

    :ivar ended: how its call did
    :ivar goes_on: False when the host is to be given back
    """

    conductor_id: str
    host: str
    ended: job_finish.Finish | None = None
    goes_on: bool = True


@dataclasses.dataclass(frozen=True)
class NextJobResult:
    """What came of a turn.

    :ivar assignment: what is to be called next, if something is due on the host
    :ivar is_over: nothing is due, and the host was given back
    """

    recorded: job_outcome.Recorded
    assignment: calls.Assignment | None = None
    is_over: bool = False


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A claim, and what is to be called under it first; None when that is to be asked for."""

    claim: job_claim.Claim
    first: calls.Assignment | None = None


Member = job_begin.Begin | job_finish.Finish | NextJobRequest | job_claim.ClaimRequest
Result = bool | job_outcome.Recorded | NextJobResult | Sequence[Claimed]

_GUARDED = sa.select(models.CacheRequest.id).where(
    models.CacheRequest.id.in_(sa.bindparam('requests', expanding=True)), rollout.is_guarded()
)


def keys(member: Member) -> Sequence[str]:
    """Give the job and the host that a member is about."""
    if isinstance(member, job_claim.ClaimRequest):
        return ['']  # one at a time: of two that want all that is free, one gets it
    if not isinstance(member, NextJobRequest):
        return [member.job_id]
    return [member.host] if member.ended is None else [member.host, member.ended.job_id]


def execute_batch(session: orm.Session, members: Sequence[Member]) -> list[Result]:
    """Do all that the members ask for, and give what came of each."""
    begins = [each for each in members if isinstance(each, job_begin.Begin)]
    turns = [each for each in members if isinstance(each, NextJobRequest)]
    finishes = [each for each in members if isinstance(each, job_finish.Finish)]
    finishes += [turn.ended for turn in turns if turn.ended is not None]
    # There is one at most, by its key.
    wanted = next((each for each in members if isinstance(each, job_claim.ClaimRequest)), None)
    if turns or wanted:
        job_claim.lock_counter(session)
    hosts = _Hosts(session, turns, wanted, [each.job_id for each in finishes])
    jobs = [*(each.job_id for each in begins), *(each.job_id for each in finishes)]
    locked = locking.lock(session, jobs, {each.job_id: each.active_key for each in hosts.jobs})
    starting = job_begin.to_start(session, begins, locked)
    if starting:  # with those of what ends, so that it is in one order
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
            results.append(hosts.claim(each, locked))  # the last step, after some were given back
        else:
            results.append(recorded.get(each.job_id, job_outcome.STALE))
    return results


class _Hosts:
    """The hosts of turns: fenced first, and then called again or given back; and free ones.

    :ivar jobs: what may be called on them
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
        self._room = None if wanted is None else job_claim.room(session)
        free = 0
        if wanted is not None and self._room is not None:
            free = self._room.free(wanted, given_back=len(turns))
        self._limited = bool((turns or free) and host_limits.limits(session))
        self._epochs: dict[str, int] = {}
        self._free: Mapping[str, str] = {}
        self._chosen: Mapping[str, assign.DueJob] = {}
        goes_on = [turn for turn in turns if turn.goes_on]
        if self._limited:
            self.jobs = assign.due(session, [turn.host for turn in goes_on])
            return
        for conductor_id, hosts in _by_conductor(goes_on).items():
            self._epochs.update(job_claim.fence_all(session, conductor_id, hosts))
        if wanted is not None and free:
            self._free = job_claim.most_urgent(session, wanted.avoid_cells, free)
        self._chosen = assign.choose(session, [*self._epochs, *self._free], ended)
        self.jobs = list(self._chosen.values())

    def go_on(
        self,
        recorded: Mapping[str, job_outcome.Recorded],
        locked: Mapping[str, locking.Locked],
    ) -> Mapping[str, NextJobResult]:
        """Give each turn its next job, or its host back."""
        held = self._held_up(recorded)
        epochs = {host: epoch for host, epoch in self._epochs.items() if host not in held}
        assigned = self._assign(epochs, locked)
        if self._limited:
            assigned = self._assign_limited(held)
        over = [each for each in self._turns if each.host not in {*assigned, *held}]
        for conductor_id, hosts in _by_conductor(over).items():
            job_claim.release_hosts(self._session, conductor_id, hosts)
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
        if self._limited:
            claim = job_claim.claim(
                self._session, wanted.conductor_id, wanted.limit, wanted.avoid_cells, wanted.lease
            )
            return [] if claim is None else [Claimed(claim)]
        if not self._free:
            return []
        # Of those that turns had, some were given back meanwhile.
        room = self._room if self._room and not self._turns else job_claim.room(self._session)
        claimed = job_claim.claim_several(self._session, wanted, self._free, room)
        first = self._assign({claim.host: claim.epoch for claim in claimed}, locked)
        return [Claimed(claim, first.get(claim.host)) for claim in claimed]

    def _assign(
        self, epochs: Mapping[str, int], locked: Mapping[str, locking.Locked]
    ) -> dict[str, calls.Assignment]:
        chosen = {host: job for host, job in self._chosen.items() if host in epochs}
        return assign.assign(self._session, chosen, epochs, locked)

    def _assign_limited(self, held: set[str]) -> dict[str, calls.Assignment]:
        """Assign one after the other: each call may be the last that a request may have."""
        made = (
            calls.assign(self._session, each.conductor_id, each.host, None)
            for each in self._turns
            if each.goes_on and each.host not in held
        )
        return {each.host: each for each in made if each is not None}

    def _held_up(self, recorded: Mapping[str, job_outcome.Recorded]) -> set[str]:
        """Give the hosts whose next job hangs on how the last one ended, for its request."""
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
    """Most often there is one; in tests several share a process."""
    found: dict[str, list[str]] = {}
    for each in turns:
        found.setdefault(each.conductor_id, []).append(each.host)
    return found
