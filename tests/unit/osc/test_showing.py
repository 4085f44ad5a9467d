# SPDX-License-Identifier: Apache-2.0
"""The screen while a command waits for a request."""

import io
import re

import pytest
from rich import console, progress

from nova_precache import model
from nova_precache.osc import showing
from tests.clock import Clock
from tests.unit.osc.conftest import request, task


@pytest.fixture
def screen() -> console.Console:
    return console.Console(file=io.StringIO(), width=150)


_ESCAPES = re.compile(r'\x1b\[[0-9;?]*[a-zA-Z]')


def _text(screen: console.Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def _snapshot(*tasks: model.Json, whole: bool = True, **fields: object) -> showing.Snapshot:
    return showing.Snapshot(request(**fields), tasks, whole)


def _state(*tasks: model.Json) -> showing.HostState:
    (state,) = showing.host_states(tasks, whole=True)
    return state


def test_host_sums_its_tasks() -> None:
    state = _state(
        task('c1', 'existing', bytes_done=0),
        task('c1', 'downloading'),
        task('c1', 'queued', bytes_done=0, bytes_total=314572800),
        task('c1', 'error', bytes_done=0),
    )

    assert (state.bytes_done, state.bytes_total) == (157286400, 629145600)
    assert state.rate_bytes == 10485760
    assert state.eta_seconds == 35.0
    assert state.words == 'downloading 2/4'


@pytest.mark.parametrize('total', [None, 0])
def test_unknown_size_moved_bytes(total: int | None) -> None:
    state = _state(task('c1', 'downloading', bytes_done=7, bytes_total=total))

    assert (state.bytes_done, state.bytes_total) == (7, 7)


def test_same_image_has_same_size() -> None:
    tasks = [
        task('c1', 'downloading'),
        task('c1', 'queued', image_id='other', bytes_done=0, bytes_total=None),
        task('c2', 'downloading', image_id='other', bytes_total=104857600),
    ]

    first, _ = showing.host_states(tasks, whole=True)

    assert first.eta_seconds == 15.0


def test_waiting_host_has_time_to_go() -> None:
    waits = [task('c1', 'queued', eta_seconds=eta) for eta in (7, 20)]

    state = _state(*waits)

    assert (state.eta_seconds, state.pace) == (20, '0:00:20')
    assert _state(*waits, task('c1', 'queued')).eta_seconds is None


@pytest.mark.parametrize(
    'tasks',
    [
        [task('c1', 'downloading'), task('c1', 'queued', image_id='other', bytes_total=None)],
        [task('c1', 'downloading', rate_bytes=0)],
        [task('c1', 'queued')],
        [task('c1', 'cached')],
    ],
)
def test_unknown_time_to_go(tasks: list[model.Json]) -> None:
    assert _state(*tasks).eta_seconds is None


def test_some_tasks_give_no_eta() -> None:
    (state,) = showing.host_states([task('c1', 'downloading')], whole=False)

    assert (state.rate_bytes, state.eta_seconds) == (10485760, None)


@pytest.mark.parametrize(
    ('status', 'reason', 'words'),
    [
        ('queued', 'waits for window 02:00Z', 'queued: waits for window 02:00Z'),
        ('retry_wait', 'retry in 12 s: 503', 'retry_wait: retry in 12 s: 503'),
        ('downloading', 'no sign of the compute for 40 s', 'downloading: no sign of the compute'),
        ('error', 'the disk is full', 'error'),
    ],
)
def test_host_says_why_it_waits(status: str, reason: str, words: str) -> None:
    said = _state(task('c1', status, reason=reason)).words

    assert said.startswith(words)
    assert said.endswith(reason) is (status != 'error')


@pytest.mark.parametrize(
    ('statuses', 'word'),
    [
        (['cached', 'queued', 'verifying'], 'verifying'),
        (['error', 'queued'], 'queued'),
        (['cached', 'error'], 'error'),
        (['cached', 'existing'], 'cached'),
        (['cached', 'what a newer release says'], 'what a newer release says'),
    ],
)
def test_host_status_is_most_informative(statuses: list[str], word: str) -> None:
    assert _state(*(task('c1', status) for status in statuses)).status == word


def test_working_hosts_shown_first() -> None:
    waiting = [task(f'w{number}', 'queued') for number in range(30)]
    states = showing.host_states([*waiting, task('c1', 'downloading')], whole=True)

    seen = showing.visible(states)

    assert len(seen) == showing.MAX_HOSTS
    assert seen[0].host == 'c1'


def test_terminal_has_host_and_total_bars() -> None:
    screen = console.Console(file=io.StringIO(), force_terminal=True, width=150)
    with showing.view(screen) as view:
        view.show(_snapshot(task('c1', 'downloading'), task('c2', 'cached')))

    for words in ('Total', 'c1', '10.0 MiB/s', '0:00:05', '50.0 MiB of 100.0 MiB', 'cached'):
        assert words in _text(screen)


def test_bars_fit_80_columns() -> None:
    screen = console.Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    reason = 'waits for its window, which begins at 2026-11-29T02:00:00Z'
    hosts = [
        task(f'compute-{number:03}.example.org', 'queued', reason=reason) for number in (1, 2, 3)
    ]
    working = [task('c' * 60, status) for status in ('downloading', 'queued')]

    with showing.view(screen) as view:
        view.show(_snapshot(*hosts, *working, reason=reason))

    lines = [_ESCAPES.sub('', line).rstrip('\r') for line in _text(screen).splitlines()]
    assert max(map(len, lines)) <= 80
    said = ' '.join(' '.join(lines).split())
    assert 'compute-001.example.org' in said
    assert 'queued: waits for its' in said
    assert '10.0 MiB/s, 0:00:10' in said


def test_unfinished_bar_is_below_100(screen: console.Console) -> None:
    bars = progress.Progress(console=screen)

    showing.BarView(bars).show(
        _snapshot(task('c1', 'downloading', bytes_done=999, bytes_total=1000))
    )

    assert [bar.fields['percent'] for bar in bars.tasks] == ['75%', '99%']


def test_bars_leave_room_for_prompt() -> None:
    screen = console.Console(file=io.StringIO(), force_terminal=True, width=80, height=10)
    bars = progress.Progress(console=screen)

    showing.BarView(bars).show(_snapshot(*(task(f'c{n}', 'queued') for n in range(15))))

    assert len(bars.tasks) == 8


def test_bars_show_some_hosts(screen: console.Console) -> None:
    bars = progress.Progress(console=screen)
    view = showing.BarView(bars)

    for first in (0, 100, 200):
        hosts = [task(f'c{first + number}', 'downloading') for number in range(50)]
        view.show(_snapshot(*hosts, whole=False))

    names = [bar.description for bar in bars.tasks]
    assert names == ['Total', *(f'c{200 + number}' for number in range(showing.MAX_HOSTS))]


def test_bar_is_full_without_download(screen: console.Console) -> None:
    bars = progress.Progress(console=screen)
    nothing = {'bytes_done': 0, 'bytes_total': 0}

    showing.BarView(bars).show(
        _snapshot(
            *(task('c1', 'existing', **nothing), task('c2', 'error', **nothing)),
            status='failed',
            **nothing,
        )
    )

    shown = {bar.description: (bar.finished, bar.fields['size']) for bar in bars.tasks}
    assert shown == {'Total': (False, ''), 'c1': (True, ''), 'c2': (False, '')}


def test_log_has_line_for_each_change(screen: console.Console) -> None:
    clock = Clock(0.0)
    view = showing.LineView(screen, clock)

    view.show(_snapshot(task('c1', 'queued')))
    view.show(_snapshot(task('c1', 'queued'), bytes_done=104857600))
    view.show(_snapshot(task('c1', 'downloading'), bytes_done=157286400))
    clock.now = showing.LINE_SECONDS
    view.show(_snapshot(task('c1', 'downloading'), bytes_done=188743680))
    view.show(_snapshot(task('c1', 'cached'), status='completed', counts={'cached': 1}))

    assert _text(screen).splitlines() == [
        'c1: queued',
        'Total: running, 1 of 2 done, 150.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:00:05 to go',
        'c1: downloading',
        'Total: running, 1 of 2 done, 180.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:00:05 to go',
        'c1: cached',
        'Total: completed, 1 of 1 done, 150.0 MiB of 200.0 MiB, 10.0 MiB/s, 0:00:05 to go',
    ]


def test_large_request_logs_no_hosts(screen: console.Console) -> None:
    showing.LineView(screen, Clock(0.0)).show(_snapshot(task('c1', 'downloading'), whole=False))

    assert _text(screen).startswith('Total: ')
    assert 'c1' not in _text(screen)


def test_repeated_log_line_omitted(screen: console.Console) -> None:
    views: tuple[showing.ProgressView, ...] = (
        showing.LineView(screen, Clock(0.0)),
        showing.BarView(progress.Progress(console=screen)),
    )

    for view in views:
        view.note('no answer; retrying')
        view.note('no answer; retrying')

    assert _text(screen) == 'no answer; retrying\n' * len(views)


def test_counted_seconds_add_no_line(screen: console.Console) -> None:
    view = showing.LineView(screen, Clock(0.0))

    for seconds in (12, 11, 10):
        view.show(_snapshot(task('c1', 'retry_wait', reason=f'retry in {seconds} s: 503')))
    view.show(_snapshot(task('c1', 'retry_wait', reason='retry in 9 s: 404')))

    lines = [line for line in _text(screen).splitlines() if line.startswith('c1')]
    assert lines == ['c1: retry_wait: retry in 12 s: 503', 'c1: retry_wait: retry in 9 s: 404']


def test_unplanned_request_shown_after_pause(screen: console.Console) -> None:
    clock = Clock(0.0)
    view = showing.LineView(screen, clock)
    waiting = _snapshot(status='accepted', counts={}, reason='no conductor has answered for 40 s')

    view.show(waiting)
    assert _text(screen) == ''
    clock.now = showing.LINE_SECONDS
    view.show(waiting)

    assert _text(screen) == 'Total: accepted: no conductor has answered for 40 s\n'


def test_long_lines_are_not_wrapped() -> None:
    screen = console.Console(file=io.StringIO(), width=80)

    showing.LineView(screen, Clock(0.0)).show(_snapshot(task('c1', 'queued', reason='word ' * 50)))

    assert f'c1: queued: {"word " * 50}\n' in _text(screen)
