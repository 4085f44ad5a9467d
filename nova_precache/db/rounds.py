# SPDX-License-Identifier: Apache-2.0
"""What workers and computes ask for at the same moment, done in one transaction for all.

Each statement is for all of them, so that a task costs the fewer of them the more is done
at once. Locks are taken in the order of everybody: the counter, claims, jobs, requests.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache.db import (
    assigning,
    beginnings,
    calls,
    claims,
    endings,
    guards,
    locks,
    models,
    parallel,
    recording,
)
from nova_precache.db import session as db_session


@dataclasses.dataclass(frozen=True)
class Turn:
    """A worker has done what it was to do on its host, and asks what is next.

    :ivar ended: how its call did
    :ivar goes_on: False when the host is to be given back
    """

    conductor_id: str
    host: str
    ended: endings.Finish | None = None
    goes_on: bool = True


@dataclasses.dataclass(frozen=True)
class Turned:
    """What came of a turn.

    :ivar assignment: what is to be called next, if something is due on the host
    :ivar is_over: nothing is due, and the host was given back
    """

    recorded: recording.Recorded
    assignment: calls.Assignment | None = None
    is_over: bool = False


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A claim, and what is to be called under it first; None when that is to be asked for."""

    claim: claims.Claim
    first: calls.Assignment | None = None


Member = beginnings.Begin | endings.Finish | Turn | claims.Wanted
Result = bool | recording.Recorded | Turned | Sequence[Claimed]

_GUARDED = sa.select(models.CacheRequest.id).where(
    models.CacheRequest.id.in_(sa.bindparam('requests', expanding=True)), guards.is_guarded()
)


def keys(member: Member) -> Sequence[str]:
    """Give the job and the host that a member is about."""
    if isinstance(member, claims.Wanted):
        return ['']  # one at a time: of two that want all that is free, one gets it
    if not isinstance(member, Turn):
        return [member.job_id]
    return [member.host] if member.ended is None else [member.host, member.ended.job_id]


def play(session: orm.Session, members: Sequence[Member]) -> list[Result]:
    """Do all that the members ask for, and give what came of each."""
    begins = [each for each in members if isinstance(each, beginnings.Begin)]
    turns = [each for each in members if isinstance(each, Turn)]
    finishes = [each for each in members if isinstance(each, endings.Finish)]
    finishes += [turn.ended for turn in turns if turn.ended is not None]
    if turns or any(isinstance(each, claims.Wanted) for each in members):
        claims.lock_counter(session)
    hosts = _Hosts(session, turns, [each.job_id for each in finishes])
    jobs = [*(each.job_id for each in begins), *(each.job_id for each in finishes)]
    locked = locks.lock(session, [*jobs, *hosts.chosen.values()])
    recorded = endings.finish(session, finishes, locked)
    begun = beginnings.begin(session, begins, locked)
    turned = hosts.go_on(recorded, locked)
    results: list[Result] = []
    for each in members:
        if isinstance(each, beginnings.Begin):
            results.append(each.job_id in begun)
        elif isinstance(each, Turn):
            results.append(turned[each.host])
        elif isinstance(each, claims.Wanted):
            results.append(_claim(session, each))  # the last step, after hosts were given back
        else:
            results.append(recorded.get(each.job_id, recording.STALE))
    return results


def _claim(session: orm.Session, wanted: claims.Wanted) -> Sequence[Claimed]:
    if parallel.limits(session):
        claim = claims.claim(
            session, wanted.conductor_id, wanted.limit, wanted.avoid_cells, wanted.lease
        )
        return [] if claim is None else [Claimed(claim)]
    claimed = claims.claim_several(session, wanted)
    epochs = {claim.host: claim.epoch for claim in claimed}
    chosen = assigning.choose(session, epochs.keys(), ended=())
    locked = locks.lock(session, chosen.values())
    first = assigning.assign(session, chosen, epochs, locked)
    return [Claimed(claim, first.get(claim.host)) for claim in claimed]


class _Hosts:
    """The hosts of turns: fenced first, and then called again or given back.

    :ivar chosen: the job of each host that is to be called next
    """

    def __init__(self, session: orm.Session, turns: Sequence[Turn], ended: Sequence[str]) -> None:
        self._session = session
        self._turns = turns
        self._limited = bool(turns and parallel.limits(session))
        self._epochs: dict[str, int] = {}
        if not self._limited:
            for conductor_id, hosts in _by_conductor([t for t in turns if t.goes_on]).items():
                self._epochs.update(claims.fence_all(session, conductor_id, hosts))
        self.chosen = assigning.choose(session, self._epochs.keys(), ended)

    def go_on(
        self,
        recorded: Mapping[str, recording.Recorded],
        locked: Mapping[str, locks.Locked],
    ) -> Mapping[str, Turned]:
        """Give each turn its next job, or its host back."""
        held = self._held_up(recorded)
        chosen = {host: job for host, job in self.chosen.items() if host not in held}
        assigned = assigning.assign(self._session, chosen, self._epochs, locked)
        if self._limited:
            assigned = self._assign_limited(held)
        over = [each for each in self._turns if each.host not in {*assigned, *held}]
        for conductor_id, hosts in _by_conductor(over).items():
            claims.release_hosts(self._session, conductor_id, hosts)
        return {
            each.host: Turned(
                _recorded(each, recorded), assigned.get(each.host), is_over=each in over
            )
            for each in self._turns
        }

    def _assign_limited(self, held: set[str]) -> dict[str, calls.Assignment]:
        """Assign one after the other: each call may be the last that a request may have."""
        made = (
            calls.assign(self._session, each.conductor_id, each.host, None)
            for each in self._turns
            if each.goes_on and each.host not in held
        )
        return {each.host: each for each in made if each is not None}

    def _held_up(self, recorded: Mapping[str, recording.Recorded]) -> set[str]:
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


def _recorded(turn: Turn, recorded: Mapping[str, recording.Recorded]) -> recording.Recorded:
    return (
        recording.STALE if turn.ended is None else recorded.get(turn.ended.job_id, recording.STALE)
    )


def _by_conductor(turns: Sequence[Turn]) -> Mapping[str, list[str]]:
    """Most often there is one; in tests several share a process."""
    found: dict[str, list[str]] = {}
    for each in turns:
        found.setdefault(each.conductor_id, []).append(each.host)
    return found
