# SPDX-License-Identifier: Apache-2.0
"""Show the progress of a request during --wait: bars in a terminal, else lines."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rich import console, progress

from nova_precache import model
from nova_precache.osc import columns
from nova_precache.osc.client import Json

MAX_HOSTS = 20
LINE_SECONDS = 5.0
# The order in which a task's status becomes that of its host; failures come after these.
_ORDER = ('converting', 'verifying', 'downloading', 'retry_wait', 'queued')
_TOTAL = 'Total'
_WHOLE = model.TASK_SUCCEEDED | {model.RequestStatus.COMPLETED}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a request with all its tasks, or (not whole) some in progress."""

    request: Json
    tasks: Sequence[Json]
    whole: bool


@dataclasses.dataclass(frozen=True)
class HostState:
    """The combined state of a host's tasks; sizes in bytes."""

    host: str
    status: str
    tasks: int
    tasks_done: int
    bytes_done: int
    bytes_total: int
    rate_bytes: int
    eta_seconds: float | None

    @property
    def words(self) -> str:
        """The status and, for several tasks, how many are done."""
        return self.status if self.tasks == 1 else f'{self.status} {self.tasks_done}/{self.tasks}'


class ProgressView(Protocol):
    """Shows successive snapshots, and notes."""

    def show(self, snapshot: Snapshot) -> None: ...

    def note(self, text: str) -> None: ...


@contextlib.contextmanager
def view(screen: console.Console) -> Iterator[ProgressView]:
    """Yield the view for the console: bars in a terminal, else lines."""
    if not screen.is_terminal:
        yield LineView(screen)
        return
    shown = (
        progress.TextColumn('{task.description}', markup=False),
        progress.BarColumn(),
        progress.TextColumn('{task.fields[size]}', justify='right'),
        progress.TextColumn('{task.fields[rate]}', justify='right'),
        progress.TextColumn('{task.fields[eta]}', justify='right'),
        progress.TextColumn('{task.fields[words]}', markup=False),
    )
    with progress.Progress(*shown, console=screen) as bars:
        yield BarView(bars)


class BarView:
    """A bar for each visible host, and one for the total."""

    def __init__(self, bars: progress.Progress) -> None:
        self._bars = bars
        self._known: dict[str, progress.TaskID] = {}
        self._noted = ''

    def show(self, snapshot: Snapshot) -> None:
        states = [total_state(snapshot.request), *visible(host_states(snapshot.tasks))]
        names = {state.host for state in states}
        for gone in self._known.keys() - names:
            self._bars.remove_task(self._known.pop(gone))
        for state in states:
            self._update(state)

    def note(self, text: str) -> None:
        if text != self._noted:
            self._noted = text
            self._bars.console.print(text, markup=False)

    def _update(self, state: HostState) -> None:
        fields: dict[str, Any] = {
            **_bar(state),
            'size': _size(state),
            'rate': columns.rate(state.rate_bytes),
            'eta': columns.duration(state.eta_seconds),
            'words': state.words,
        }
        if state.host not in self._known:
            self._known[state.host] = self._bars.add_task(state.host, **fields)
        self._bars.update(self._known[state.host], **fields)


class LineView:
    """A line for each change: for a log or a screen reader."""

    def __init__(
        self, screen: console.Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._clock = clock
        self._said: dict[str, str] = {}
        self._next_total = clock()

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.whole:
            for state in visible(host_states(snapshot.tasks)):
                self._say(state.host, state.words)
        ended = snapshot.request['status'] not in model.REQUEST_ACTIVE
        if ended or self._clock() >= self._next_total:
            self._next_total = self._clock() + LINE_SECONDS
            self._say(_TOTAL, _sentence(total_state(snapshot.request)))

    def note(self, text: str) -> None:
        self._say('', text)

    def _say(self, who: str, text: str) -> None:
        if self._said.get(who) != text:
            self._said[who] = text
            self._screen.print(f'{who}: {text}' if who else text, markup=False)


def total_state(request: Json) -> HostState:
    """Summarise a request as if it were one host."""
    counts = request['counts']
    return HostState(
        host=_TOTAL,
        status=request['status'],
        tasks=sum(counts.values()),
        tasks_done=sum(n for status, n in counts.items() if status not in model.TASK_IN_FLIGHT),
        bytes_done=request['bytes_done'],
        bytes_total=request['bytes_total'],
        rate_bytes=request['rate_bytes'] or 0,
        eta_seconds=request['eta_seconds'],
    )


def host_states(tasks: Sequence[Json]) -> Sequence[HostState]:
    """Combine the tasks of each host, in the order of the plan."""
    by_host: dict[str, list[Json]] = {}
    for task in tasks:
        by_host.setdefault(task['host'], []).append(task)
    return [_host_state(host, its) for host, its in by_host.items()]


def visible(states: Sequence[HostState]) -> Sequence[HostState]:
    """Choose at most ``MAX_HOSTS`` hosts, those at work first."""
    if len(states) <= MAX_HOSTS:
        return states
    return sorted(states, key=lambda state: state.status not in model.TASK_WORKING)[:MAX_HOSTS]


def _host_state(host: str, tasks: Sequence[Json]) -> HostState:
    return HostState(
        host=host,
        status=_status([task['status'] for task in tasks]),
        tasks=len(tasks),
        tasks_done=sum(task['status'] not in model.TASK_IN_FLIGHT for task in tasks),
        bytes_done=sum(_done(task) for task in tasks),
        bytes_total=sum(max(task['bytes_total'] or 0, _done(task)) for task in tasks),
        rate_bytes=sum(task['rate_bytes'] or 0 for task in tasks),
        eta_seconds=max((task['eta_seconds'] or 0 for task in tasks), default=0) or None,
    )


def _status(statuses: Sequence[str]) -> str:
    """Return the most relevant status: work, waiting, then failure, then success."""
    for status in _ORDER:
        if status in statuses:
            return status
    failed = [status for status in statuses if status not in model.TASK_SUCCEEDED]
    return next(iter(failed), statuses[0])


def _done(task: Json) -> int:
    """Return the bytes done; a succeeded task, also of an existing image, counts as whole."""
    whole = task['status'] in model.TASK_SUCCEEDED
    return int((task['bytes_total'] if whole else None) or task['bytes_done'])


def _bar(state: HostState) -> Mapping[str, int | None]:
    """Return the fill of the bar: full, too, if all images existed and no byte was moved."""
    if state.bytes_total == 0 and state.status in _WHOLE:
        return {'completed': 1, 'total': 1}
    return {'completed': state.bytes_done, 'total': state.bytes_total or None}


def _size(state: HostState) -> str:
    if state.bytes_total == 0:
        return ''
    return f'{columns.size(state.bytes_done)} of {columns.size(state.bytes_total)}'


def _sentence(state: HostState) -> str:
    if state.tasks == 0:
        return state.status
    said = [f'{state.status}, {state.tasks_done} of {state.tasks} done']
    if state.bytes_total:
        said.append(_size(state))
    if state.rate_bytes:
        said.append(columns.rate(state.rate_bytes))
    if state.eta_seconds is not None:
        said.append(f'{columns.duration(state.eta_seconds)} to go')
    return ', '.join(said)
