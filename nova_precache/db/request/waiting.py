# SPDX-License-Identifier: Apache-2.0
"""Explains why a task in flight does not move now, and why a request does not.

Pure: ``db.explanations`` loads the facts whenever a request or a task is read. The first cause
in the order of the functions below counts: repairing a later one would not help.
"""

import dataclasses
import datetime
import math
from collections.abc import Collection

from nova_precache import model
from nova_precache.db import host_recovery

_AWAY = (host_recovery.DOWN, host_recovery.DISABLED)


@dataclasses.dataclass(frozen=True)
class ServiceFacts:
    """Facts that all tasks share.

    :ivar now: by the database's clock
    :ivar conductor_seen_at: last sign of any conductor; None if there never was one
    :ivar conductor_silent: conductors that gave no sign for longer do not work
    :ivar compute_silent: the same for computes
    :ivar streams: number of hosts that conductors are calling now, and that may read from Glance
    """

    now: datetime.datetime
    conductor_seen_at: datetime.datetime | None
    conductor_silent: datetime.timedelta
    compute_silent: datetime.timedelta
    streams: int
    precache_concurrency: int


@dataclasses.dataclass(frozen=True)
class RequestFacts:
    """Facts about one request.

    :ivar reason: as stored
    :ivar not_before: None once its window has begun
    :ivar canary: hosts that are done, and their number; None if it holds up no task
    :ivar busy_hosts: the hosts at work for it; counted only if it has a limit
    :ivar max_rate_bytes: limit of the rate on each host
    """

    status: str
    created_at: datetime.datetime
    is_planned: bool = True
    reason: str | None = None
    not_before: datetime.datetime | None = None
    canary: tuple[int, int] | None = None
    waits_for_down_hosts: bool = False
    max_parallel_hosts: int | None = None
    busy_hosts: Collection[str] = ()
    max_rate_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Turn:
    """The place of a host among those that wait for a slot.

    :ivar hosts_before: hosts that are claimed first
    :ivar is_beyond: the host comes later than those, by a number of hosts that is not counted
    :ivar seconds: until its turn; None if unknown
    """

    hosts_before: int
    is_beyond: bool = False
    seconds: float | None = None

    def __str__(self) -> str:
        """Return the end of a sentence; empty if nothing is known."""
        if self.is_beyond and not self.hosts_before:
            return ''
        hosts = '1 host' if self.hosts_before == 1 else f'{self.hosts_before:,} hosts'
        return f', more than {hosts} before it' if self.is_beyond else f', {hosts} before it'


@dataclasses.dataclass(frozen=True)
class HostFacts:
    """Facts about the host of a task.

    :ivar cell_problem: why no conductor can call the hosts of its cell
    :ivar down: why the host counts as down
    :ivar seen_at: last report of its agent, of any kind; None for a stock nova-compute
    :ivar registered_at: last registration of its agent
    :ivar is_claimed: a conductor calls it
    :ivar is_at_work: it is called for an image now, maybe one of another project
    :ivar unanswered_until: an earlier call to its nova-compute may still run until then
    :ivar turn: loaded only if it waits for a slot; None if none of its jobs is due any more
    :ivar rate_bytes: its current or measured rate, or that to expect; None if unknown
    """

    name: str
    cell_problem: str | None = None
    down: str | None = None
    seen_at: datetime.datetime | None = None
    registered_at: datetime.datetime | None = None
    is_claimed: bool = False
    is_at_work: bool = False
    unanswered_until: datetime.datetime | None = None
    turn: Turn | None = None
    rate_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class JobFacts:
    """Facts about the job of a task.

    :ivar is_ready: a request lets it run now
    :ivar is_called: it is assigned to the current call of its host
    :ivar stop_why: its compute is to stop it
    :ivar progress_at: when its progress was recorded last
    :ivar bytes_before: to be received first by its host, of other images
    """

    is_ready: bool = False
    is_called: bool = False
    stop_why: str | None = None
    progress_at: datetime.datetime | None = None
    bytes_before: int = 0


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """Facts about one task; it has no job before its request is planned."""

    task: model.Task
    request: RequestFacts
    host: HostFacts
    job: JobFacts = dataclasses.field(default_factory=JobFacts)


def task_reason(service: ServiceFacts, facts: TaskFacts) -> str | None:
    """Return why a task does not move; the stored reason if it has ended.

    None if bytes arrive, or are verified or converted.
    """
    status = facts.task.status
    if status not in model.TASK_IN_FLIGHT:
        return facts.task.reason
    silence = _conductor_silence(service, facts.request)
    if silence is not None:
        return silence
    is_working = status in model.TASK_WORKING
    return _why_stuck(service, facts) if is_working else _why_waiting(service, facts)


def rate_bytes(service: ServiceFacts, facts: TaskFacts) -> int | None:
    """Return the rate of a task; 0 if its compute is silent or works on it no longer."""
    if facts.task.status not in model.TASK_WORKING:
        return facts.task.rate_bytes
    is_over = _compute_silence(service, facts) or _is_lost(facts)
    return 0 if is_over else facts.task.rate_bytes


def is_coming(service: ServiceFacts, facts: TaskFacts) -> bool:
    """Return whether a task waits, and its host will be called as soon as it is its turn."""
    if facts.task.status not in model.TASK_WAITING:
        return False
    silence = _conductor_silence(service, facts.request)
    return facts.job.is_ready and silence is None and _obstacle(service, facts) is None


def waits_for_slot(service: ServiceFacts, facts: TaskFacts) -> bool:
    """Return whether a task is due, and nothing holds it up but the limit of claimed hosts."""
    return (
        is_coming(service, facts)
        and not facts.host.is_claimed
        and _until_retry(service, facts) is None
        and service.streams >= service.precache_concurrency
    )


def expected_seconds(service: ServiceFacts, facts: TaskFacts) -> float | None:
    """Return the time until the bytes of a waiting task are received; None if not known.

    That is the time until its next attempt and its host's turn, and that for the bytes which its
    host receives until then, at the expected rate.
    """
    task, rate = facts.task, facts.host.rate_bytes
    seconds = seconds_until_called(service, facts)
    if seconds is None or not rate or task.bytes_total is None:
        return None
    to_come = facts.job.bytes_before + max(0, task.bytes_total - task.bytes_done)
    return seconds + to_come / rate


def seconds_until_called(service: ServiceFacts, facts: TaskFacts) -> float | None:
    """Return the time until the host of a waiting task is called for it or an image before it."""
    if not is_coming(service, facts):
        return None
    due_at, turn = facts.task.next_attempt_at, facts.host.turn
    if due_at is not None and due_at > service.now:
        return (due_at - service.now).total_seconds()
    if not waits_for_slot(service, facts):
        return 0.0
    return None if turn is None else turn.seconds


def request_reason(
    service: ServiceFacts, request: RequestFacts, first: TaskFacts | None
) -> str | None:
    """Return why a request does not move; the stored reason if it has ended.

    :param first: a task that stands for all in flight; None if there is none, or bytes arrive
    """
    if request.status not in model.REQUEST_ACTIVE:
        return request.reason
    silence = _conductor_silence(service, request)
    if silence is not None:
        return silence
    if request.status == model.RequestStatus.CANCELLING:
        return 'waits for running transfers to stop'
    if request.status == model.RequestStatus.PAUSED:
        return 'it is paused'
    if not request.is_planned:
        return None if request.reason is None else _not_planned(request)
    if _is_before_window(service, request):
        return _window(request)
    why = None if first is None else task_reason(service, first)
    return None if first is None or why is None else f'{first.host.name}: {why}'


def _conductor_silence(service: ServiceFacts, request: RequestFacts) -> str | None:
    silent = service.now - (service.conductor_seen_at or request.created_at)
    if silent <= service.conductor_silent:
        return None
    return f'no conductor has answered for {_seconds(silent)} s'


def _why_waiting(service: ServiceFacts, facts: TaskFacts) -> str:
    """Return why a task waits; if several requests want its job, one may let it run."""
    held = None if facts.job.is_ready else _held_by_request(service, facts.request)
    return held or _until_retry(service, facts) or _until_called(service, facts)


def _held_by_request(service: ServiceFacts, request: RequestFacts) -> str | None:
    if request.status == model.RequestStatus.CANCELLING:
        return 'its request is being cancelled'
    if request.status == model.RequestStatus.PAUSED:
        return 'its request is paused'
    if not request.is_planned:
        return f'its request is {_not_planned(request)}'
    if _is_before_window(service, request):
        return _window(request)
    if request.canary is not None:
        done, hosts = request.canary
        return f'waits for the canary hosts: {done} of {hosts} done'
    return None


def _not_planned(request: RequestFacts) -> str:
    return 'not planned yet' if request.reason is None else f'not planned yet: {request.reason}'


def _is_before_window(service: ServiceFacts, request: RequestFacts) -> bool:
    return request.not_before is not None and request.not_before > service.now


def _window(request: RequestFacts) -> str:
    return f'waits for its window, which begins at {_time(request.not_before)}'


def _until_retry(service: ServiceFacts, facts: TaskFacts) -> str | None:
    task = facts.task
    if task.next_attempt_at is None or task.next_attempt_at <= service.now:
        return None
    reason = task.reason or 'the last attempt failed'
    if reason.startswith(_AWAY):
        return f'{reason}; waits until it is back'
    return f'retry in {_seconds(task.next_attempt_at - service.now)} s: {reason}'


def _until_called(service: ServiceFacts, facts: TaskFacts) -> str:
    """Return why a task that is due is not called yet."""
    obstacle = _obstacle(service, facts)
    if obstacle is not None:
        return obstacle
    if facts.host.is_claimed:
        return _until_served(facts)
    if service.streams >= service.precache_concurrency:
        turn = '' if facts.host.turn is None else str(facts.host.turn)
        return (
            f'waits for a slot: {service.streams} of {service.precache_concurrency} hosts '
            f'are at work{turn}'
        )
    if facts.task.reason is not None and facts.task.status == model.TaskStatus.RETRY_WAIT:
        return f'retry now: {facts.task.reason}'
    return 'waits for a conductor to call its host'


def _obstacle(service: ServiceFacts, facts: TaskFacts) -> str | None:
    """Return what keeps the host of a task from being called, or from answering."""
    host, request = facts.host, facts.request
    if host.cell_problem is not None:
        return host.cell_problem
    if host.is_claimed:
        return _compute_silence(service, facts)
    if host.unanswered_until is not None and host.unanswered_until > service.now:
        return (
            'its nova-compute has not answered an earlier call, which may run until '
            f'{_time(host.unanswered_until)}'
        )
    down = host.down or _recorded_absence(facts)
    if down is not None:
        return f'{down}; waits until it is back' if request.waits_for_down_hosts else down
    limit, busy = request.max_parallel_hosts, request.busy_hosts
    if limit is not None and len(busy) >= limit and host.name not in busy:
        return f'waits for a slot of its request: {len(busy)} of {limit} hosts are at work'
    return None


def _recorded_absence(facts: TaskFacts) -> str | None:
    """Return why a nova-compute was away when the task was planned: only conductors ask Nova."""
    reason = facts.task.reason
    is_agent = facts.host.seen_at is not None
    return None if is_agent or reason is None or not reason.startswith(_AWAY) else reason


def _until_served(facts: TaskFacts) -> str:
    if facts.job.is_called:
        return 'its host has been called and has not begun yet'
    if facts.host.is_at_work:
        return 'waits for another image on the same host'
    return 'waits for another call to its host'


def _why_stuck(service: ServiceFacts, facts: TaskFacts) -> str | None:
    """Return why a task that a compute works on does not move, if it does not."""
    if facts.host.cell_problem is not None:
        return facts.host.cell_problem
    silence = _compute_silence(service, facts)
    if silence is not None:
        return silence
    if _is_lost(facts):
        return 'no progress since its compute registered'
    match facts.job.stop_why:
        case model.StopWhy.CANCELLED:
            return 'its request is being cancelled'
        case model.StopWhy.PAUSED:
            return 'its request is paused; the transfer is being stopped'
        case model.StopWhy.DEADLINE:
            return 'the deadline of its request has passed; the transfer is being stopped'
    still = _still(service, facts)
    return None if still is None else f'no bytes have arrived for {_seconds(still)} s'


def _still(service: ServiceFacts, facts: TaskFacts) -> datetime.timedelta | None:
    """Return for how long a download has stood still; None if it does not.

    A compute reports that once. A nova-compute reports no progress at all.
    """
    progress_at, rate = facts.job.progress_at, facts.task.rate_bytes
    is_downloading = facts.task.status == model.TaskStatus.DOWNLOADING
    if not is_downloading or facts.host.seen_at is None or progress_at is None:
        return None
    since = service.now - progress_at
    if rate == 0:
        return since + datetime.timedelta(seconds=model.STILL_SECONDS)
    return since if rate is None and since > service.compute_silent else None


def _compute_silence(service: ServiceFacts, facts: TaskFacts) -> str | None:
    """Return for how long nothing was heard of a compute; None if not for long."""
    signs = [each for each in (facts.host.seen_at, facts.job.progress_at) if each is not None]
    if facts.host.seen_at is None or service.now - max(signs) <= service.compute_silent:
        return None
    return f'no sign of the compute for {_seconds(service.now - max(signs))} s'


def _is_lost(facts: TaskFacts) -> bool:
    """Return whether the compute has registered since it reported progress last."""
    registered_at, progress_at = facts.host.registered_at, facts.job.progress_at
    return registered_at is not None and progress_at is not None and registered_at > progress_at


def cell_problem(
    name: str, disabled: str | None, heard_at: datetime.datetime, now: datetime.datetime
) -> str:
    """Describe a cell that no conductor hears."""
    if disabled is not None:
        return disabled
    return f'no conductor has heard cell {name} for {_seconds(now - heard_at)} s'


def _seconds(time: datetime.timedelta) -> int:
    return max(1, math.ceil(time.total_seconds()))


def _time(time: datetime.datetime | None) -> str:
    return f'{time:%Y-%m-%dT%H:%M:%SZ}'
