# SPDX-License-Identifier: Apache-2.0
"""The screen while a command waits for a request."""

import io

import pytest
from rich import console, progress

from nova_precache import model
from nova_precache.osc import showing
from tests.unit.osc.conftest import request, task


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def screen() -> console.Console:
    return console.Console(file=io.StringIO(), width=150)


def _text(screen: console.Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def _snapshot(*tasks: model.Json, whole: bool = True, **fields: object) -> showing.Snapshot:
    return showing.Snapshot(request(**fields), tasks, whole)


def _state(*tasks: model.Json) -> showing.HostState:
    (state,) = showing.host_states(tasks)
    return state


def test_host_sums_its_tasks() -> None:
    state = _state(
        task('c1', 'existing', bytes_done=0),
        task('c1', 'downloading'),
        task('c1', 'queued', bytes_done=0, bytes_total=None),
    )

    assert (state.bytes_done, state.bytes_total) == (157286400, 209715200)
    assert (state.rate_bytes, state.eta_seconds) == (10485760, 5.0)
    assert state.words == 'downloading 1/3'


@pytest.mark.parametrize('total', [None, 0])
def test_unknown_size_moved_bytes(total: int | None) -> None:
    state = _state(task('c1', 'downloading', bytes_done=7, bytes_total=total))

    assert (state.bytes_done, state.bytes_total) == (7, 7)


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
    states = showing.host_states([*waiting, task('c1', 'downloading')])

    seen = showing.visible(states)

    assert len(seen) == showing.MAX_HOSTS
    assert seen[0].host == 'c1'


def test_terminal_has_host_and_total_bars() -> None:
    screen = console.Console(file=io.StringIO(), force_terminal=True, width=150)
    with showing.view(screen) as view:
        view.show(_snapshot(task('c1', 'downloading'), task('c2', 'cached')))

    for words in ('Total', 'c1', '10.0 MiB/s', '0:00:05', '50.0 MiB of 100.0 MiB', 'cached'):
        assert words in _text(screen)


def test_bars_fit_the_terminal(screen: console.Console) -> None:
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
    clock = Clock()
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
    showing.LineView(screen, Clock()).show(_snapshot(task('c1', 'downloading'), whole=False))

    assert _text(screen).startswith('Total: ')
    assert 'c1' not in _text(screen)


def test_repeated_log_line_omitted(screen: console.Console) -> None:
    views: tuple[showing.ProgressView, ...] = (
        showing.LineView(screen, Clock()),
        showing.BarView(progress.Progress(console=screen)),
    )

    for view in views:
        view.note('no answer; retrying')
        view.note('no answer; retrying')

    assert _text(screen) == 'no answer; retrying\n' * len(views)


def test_unplanned_request_shows_only_status(screen: console.Console) -> None:
    showing.LineView(screen, Clock()).show(_snapshot(status='accepted', counts={}))

    assert _text(screen) == 'Total: accepted\n'
