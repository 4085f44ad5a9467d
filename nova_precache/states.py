# SPDX-License-Identifier: Apache-2.0
"""The transitions of requests, tasks and jobs between the statuses in ``model``.

Pure. ``db`` reads here which statuses an event applies to. The page about the design has the
diagrams that ``tools/state_diagrams.py`` draws of these tables, and a test drives each arrow.
"""

import enum
from collections.abc import Collection, Iterable
from typing import Generic, NamedTuple, TypeVar

from nova_precache.model import (
    TASK_IN_FLIGHT,
    TASK_WAITING,
    TASK_WORKING,
    RequestStatus as Request,
    TaskStatus as Task,
)

S = TypeVar('S', bound=str)


class Event(enum.StrEnum):
    """What happens to a request, a task or a job."""

    ACCEPT = 'accept'
    PLAN = 'plan'  # the plan is complete, or has this task
    FAIL = 'fail to plan'
    ADOPT = 'adopt'  # from a conductor of an earlier release
    PAUSE = 'pause'
    RESUME = 'resume'
    CANCEL = 'cancel'
    EXPIRE = 'expire'
    COMPLETE = 'complete'  # no task is in flight
    RETRY = 'retry'  # by a user
    CALL = 'call'  # assign the job for the next call
    BEGIN = 'begin'  # the call has reached a compute
    PROGRESS = 'report progress'
    WAIT = 'wait'  # until the next attempt
    FINISH = 'finish'


class Arrow(NamedTuple, Generic[S]):
    """One transition; ``origin`` is None if the event makes the row."""

    event: Event
    origin: S | None
    target: S


class Transitions(Generic[S]):
    """The arrows of one kind of row.

    :param rules: an event, the statuses in which it may find a row, and those it may lead to
    """

    def __init__(self, *rules: tuple[Event, Iterable[S | None], Collection[S]]) -> None:
        self.arrows: tuple[Arrow[S], ...] = tuple(
            Arrow(event, origin, target)
            for event, origins, targets in rules
            for origin in origins
            for target in targets
        )
        self._origins = {
            event: frozenset(
                arrow.origin
                for arrow in self.arrows
                if arrow.event == event and arrow.origin is not None
            )
            for event in Event
        }

    def origins(self, event: Event) -> frozenset[S]:
        """Return the statuses of existing rows that an event applies to."""
        return self._origins[event]

    def targets(self, event: Event) -> frozenset[S]:
        """Return the statuses that an event may lead to."""
        return frozenset(arrow.target for arrow in self.arrows if arrow.event == event)


_PAUSABLE = (Request.ACCEPTED, Request.PLANNED, Request.RUNNING)
_ENDED = (Request.COMPLETED, Request.PARTIAL, Request.FAILED, Request.EXPIRED)
REQUESTS = Transitions[Request](
    (Event.ACCEPT, [None], [Request.ACCEPTED]),
    (Event.PLAN, [Request.ACCEPTED], [Request.PLANNED]),
    (Event.PLAN, [Request.PAUSED], [Request.PAUSED]),
    (Event.FAIL, [Request.ACCEPTED, Request.PAUSED], [Request.PARTIAL, Request.FAILED]),
    (Event.ADOPT, [Request.PLANNED], [Request.PLANNED]),
    (Event.ADOPT, [Request.RUNNING], [Request.RUNNING]),
    (Event.BEGIN, [Request.PLANNED], [Request.RUNNING]),
    (Event.PAUSE, _PAUSABLE, [Request.PAUSED]),
    (Event.RESUME, [Request.PAUSED], _PAUSABLE),
    (Event.CANCEL, [*_PAUSABLE, Request.PAUSED], [Request.CANCELLING]),
    (Event.COMPLETE, [Request.PLANNED, Request.RUNNING, Request.PAUSED], _ENDED),
    (Event.COMPLETE, [Request.CANCELLING], [Request.COMPLETED, Request.CANCELLED]),
    (
        Event.RETRY,
        [Request.PARTIAL, Request.FAILED, Request.CANCELLED, Request.EXPIRED],
        [Request.ACCEPTED],
    ),
)
# Requests that have neither ended nor are being cancelled.
STEERABLE = REQUESTS.origins(Event.CANCEL)


def _ordered(statuses: Collection[Task]) -> list[Task]:
    return [status for status in Task if status in statuses]


_IN_FLIGHT = _ordered(TASK_IN_FLIGHT)
_WORKING = _ordered(TASK_WORKING)
# Tasks copy the status of the job that they share.
_SHARED: tuple[tuple[Event, Collection[Task], Collection[Task]], ...] = (
    (Event.CALL, _ordered(TASK_WAITING), [Task.QUEUED]),
    (Event.BEGIN, _ordered(TASK_WAITING), [Task.DOWNLOADING]),
    (Event.PROGRESS, _WORKING, _WORKING),
    (Event.WAIT, _IN_FLIGHT, [Task.RETRY_WAIT]),
    (
        Event.FINISH,
        _IN_FLIGHT,
        [Task.CACHED, Task.EXISTING, Task.UNSUPPORTED, Task.ERROR, Task.SKIPPED],
    ),
    (Event.CANCEL, _IN_FLIGHT, [Task.CANCELLED]),
    (Event.EXPIRE, _IN_FLIGHT, [Task.EXPIRED]),
)
JOBS = Transitions[Task]((Event.PLAN, [None], [Task.QUEUED]), *_SHARED)
# Outcomes of jobs that stopped by order.
STOPPED = JOBS.targets(Event.CANCEL) | JOBS.targets(Event.EXPIRE)
TASKS = Transitions[Task](
    (
        Event.PLAN,
        [None, Task.QUEUED],
        [*_IN_FLIGHT, Task.UNSUPPORTED, Task.ERROR, Task.SKIPPED],
    ),
    *_SHARED,
    (
        Event.RETRY,
        [Task.UNSUPPORTED, Task.ERROR, Task.SKIPPED, Task.CANCELLED, Task.EXPIRED],
        [Task.QUEUED],
    ),
)
