# SPDX-License-Identifier: Apache-2.0
"""Show the progress of a request during --wait: bars in a terminal, else lines."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypedDict

from rich import console, progress, table

from nova_precache import model
from nova_precache.osc import columns
from nova_precache.osc.client import Json

MAX_HOSTS = 20
LINE_SECONDS = 5.0
# The order in which a task's status becomes that of its host; failures come after these.
_ORDER = ('converting', 'verifying', 'downloading', 'retry_wait', 'queued')
_TOTAL = 'Total'
# Terminals at least this wide show sizes, too.
_WIDE = 120
_NAME_WIDTH = 26
_BAR_WIDTH = 8
# The total, the command line, and one to spare.
_OTHER_LINES = 3
_SECONDS = re.compile(r'\d+(?= s\b)')
_WHOLE = model.TASK_SUCCEEDED | {model.RequestStatus.COMPLETED}


class _Fill(TypedDict):
    completed: int
    total: int | None


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a request with all its tasks, or (not whole) some in progress."""

    request: Json
    tasks: Sequence[Json]
    whole: bool

    @property
    def progress(self) -> object:
        """What changes if the request moves: no rates, and no reasons, which count seconds."""
        tasks = [(task['host'], task['status'], task['bytes_done']) for task in self.tasks]
        return self.request['status'], self.request['counts'], self.request['bytes_done'], tasks


@dataclasses.dataclass(frozen=True)
class HostState:
    """The combined state of a host's tasks; sizes in bytes.

    :ivar reason: why the tasks that have not ended do not move
    """

    host: str
    status: str
    tasks: int
    tasks_done: int
    bytes_done: int
    bytes_total: int
    rate_bytes: int
    eta_seconds: float | None
    reason: str | None = None

    @property
    def words(self) -> str:
        """The status, for several tasks how many are done, and why they wait."""
        return self._with_reason(self._status)

    @property
    def words_and_pace(self) -> str:
        """The same, with the rate and the time to go before the reason."""
        return self._with_reason(', '.join(filter(None, (self._status, self.pace))))

    @property
    def pace(self) -> str:
        """The rate and the time to go, as far as they are known."""
        said = (columns.rate(self.rate_bytes), columns.duration(self.eta_seconds))
        return ', '.join(filter(None, said))

    @property
    def _status(self) -> str:
        return self.status if self.tasks <= 1 else f'{self.status} {self.tasks_done}/{self.tasks}'

    def _with_reason(self, text: str) -> str:
        return f'{text}: {self.reason}' if self.reason else text


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
    with progress.Progress(*_bar_columns(screen.width), console=screen) as bars:
        yield BarView(bars)


class BarView:
    """A bar for each visible host, and one for the total."""

    def __init__(self, bars: progress.Progress) -> None:
        self._bars = bars
        self._known: dict[str, progress.TaskID] = {}
        self._noted = ''

    def show(self, snapshot: Snapshot) -> None:
        most = min(MAX_HOSTS, max(1, self._bars.console.height - _OTHER_LINES))
        hosts = visible(host_states(snapshot.tasks, snapshot.whole), most)
        states = [total_state(snapshot.request), *hosts]
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
        bar = _bar(state)
        fields: dict[str, Any] = {
            **bar,
            'percent': f'{columns.percent(bar["completed"], bar["total"]) or 0}%',
            'size': _size(state),
            'pace': state.pace,
            'words': state.words,
            'words_and_pace': state.words_and_pace,
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
        self._next_unplanned = clock() + LINE_SECONDS

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.whole:
            for state in visible(host_states(snapshot.tasks, snapshot.whole)):
                self._say(state.host, state.words)
        total = total_state(snapshot.request)
        ended = total.status not in model.REQUEST_ACTIVE
        next_total = self._next_total if total.tasks else self._next_unplanned
        if (ended and total.tasks) or (not ended and self._clock() >= next_total):
            self._next_total = self._next_unplanned = self._clock() + LINE_SECONDS
            self._say(_TOTAL, _sentence(total))

    def note(self, text: str) -> None:
        self._say('', text)

    def _say(self, who: str, text: str) -> None:
        # A reason counts the seconds; that alone is no new line.
        steady = _SECONDS.sub('', text)
        if self._said.get(who) != steady:
            self._said[who] = steady
            said = f'{who}: {text}' if who else text
            self._screen.print(said, markup=False, soft_wrap=True)


def _bar_columns(width: int) -> Iterator[progress.ProgressColumn]:
    """Yield the columns for a terminal of some width: only the last one wraps."""
    name = table.Column(max_width=_NAME_WIDTH, overflow='fold')
    rest = table.Column(overflow='fold')
    yield progress.TextColumn('{task.description}', markup=False, table_column=name)
    if width < _WIDE:
        yield progress.BarColumn(bar_width=_BAR_WIDTH)
        yield progress.TextColumn('{task.fields[percent]}', justify='right')
        yield progress.TextColumn('{task.fields[words_and_pace]}', markup=False, table_column=rest)
    else:
        yield progress.BarColumn()
        yield progress.TextColumn('{task.fields[size]}', justify='right')
        yield progress.TextColumn('{task.fields[pace]}', justify='right')
        yield progress.TextColumn('{task.fields[words]}', markup=False, table_column=rest)


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
        reason=request['reason'] if request['status'] in model.REQUEST_ACTIVE else None,
    )


def host_states(tasks: Sequence[Json], whole: bool) -> Sequence[HostState]:
    """Combine the tasks of each host, in the order of the plan.

    :param whole: these are all tasks; of some, the time to go would be too short
    """
    sizes = {task['image_id']: task['bytes_total'] for task in tasks if task['bytes_total']}
    by_host: dict[str, list[Json]] = {}
    for task in tasks:
        total = task['bytes_total'] or sizes.get(task['image_id'])
        by_host.setdefault(task['host'], []).append({**task, 'bytes_total': total})
    states = (_host_state(host, its) for host, its in by_host.items())
    return [state if whole else dataclasses.replace(state, eta_seconds=None) for state in states]


def visible(states: Sequence[HostState], most: int = MAX_HOSTS) -> Sequence[HostState]:
    """Choose some hosts, those at work first."""
    if len(states) <= most:
        return states
    return sorted(states, key=lambda state: state.status not in model.TASK_WORKING)[:most]


def _host_state(host: str, tasks: Sequence[Json]) -> HostState:
    status = _status([task['status'] for task in tasks])
    rate_bytes = sum(task['rate_bytes'] or 0 for task in tasks)
    in_flight = [task for task in tasks if task['status'] in model.TASK_IN_FLIGHT]
    return HostState(
        host=host,
        status=status,
        tasks=len(tasks),
        tasks_done=len(tasks) - len(in_flight),
        bytes_done=sum(_done(task) for task in tasks),
        bytes_total=sum(max(task['bytes_total'] or 0, _done(task)) for task in tasks),
        rate_bytes=rate_bytes,
        eta_seconds=_eta(in_flight, rate_bytes),
        reason=next(
            (task['reason'] for task in in_flight if task['status'] == status and task['reason']),
            None,
        ),
    )


def _eta(in_flight: Sequence[Json], rate_bytes: int) -> float | None:
    """Return the seconds for the remaining bytes of a host, None if some are unknown.

    A host that waits for its turn has them when its last task has.
    """
    if all(task['status'] in model.TASK_WAITING for task in in_flight):
        expected = [task['eta_seconds'] for task in in_flight if task.get('eta_seconds')]
        return max(expected) if expected and len(expected) == len(in_flight) else None
    if not rate_bytes or any(task['bytes_total'] is None for task in in_flight):
        return None
    left = sum(max(0, int(task['bytes_total'] - task['bytes_done'])) for task in in_flight)
    return left / rate_bytes


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


def _bar(state: HostState) -> _Fill:
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
        return state.words
    said = [f'{state.status}, {state.tasks_done} of {state.tasks} done']
    if state.bytes_total:
        said.append(_size(state))
    if state.rate_bytes:
        said.append(columns.rate(state.rate_bytes))
    if state.eta_seconds is not None:
        said.append(f'{columns.duration(state.eta_seconds)} to go')
    return f'{", ".join(said)}{f": {state.reason}" if state.reason else ""}'
