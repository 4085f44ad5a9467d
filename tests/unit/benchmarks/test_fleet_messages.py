# SPDX-License-Identifier: Apache-2.0
"""Evaluation of the messages of a fleet, and the shared threads of its simulated agents."""

import dataclasses
import json
import threading
import warnings
from collections.abc import Callable

import pytest

with warnings.catch_warnings():
    # Those of the openstack client's modules as they are imported.
    warnings.simplefilter('ignore')
    from benchmarks.fleet import (
        __main__ as command,
        agents,
        calls,
        conductor,
        message_findings,
        messages,
    )
from tools.waiting import wait_until

KIB, MIB = 1024, 1024**2


def _flow(what: str, cores: float, share: float = 1.0) -> messages.Flow:
    """Messages of 20 seconds, 100 a second, with this CPU of a conductor."""
    return messages.Flow(what, 20.0, 2000, share, conductor.Cpu(cores * 20, cores * 4, cores * 2))


def _messages(
    cores: float = 0.2, written_ms: float = 0.05, question_seconds: float = 0.4
) -> messages.Messages:
    backlog = messages.Backlog(30, 12_000, 80 * MIB, 200, question_seconds, 100, 66.0, 0)
    return messages.Messages(
        10_000,
        _flow('registrations', 0.1),
        _flow('heartbeats of 10,000 hosts', 0.3),
        [messages.Progress(1000, _flow('reports of 1,000 transfers', cores), written_ms, 0.06)],
        backlog,
    )


def _calls(one_seconds: float, ten_seconds: float, waiting_kib: float = 50) -> calls.Calls:
    ours = [
        calls.Called(images, 3.0, conductor.Cpu(seconds, 0.6, 0.3))
        for images, seconds in ((1, one_seconds), (10, ten_seconds))
    ]
    novas = [calls.Called(images, 2.0, conductor.Cpu(1.5, 0.3, 0.15)) for images in (1, 10)]
    return calls.Calls(300, ours, novas, waiting_kib * KIB)


def _missed(*found: messages.Messages | calls.Calls) -> list[str]:
    reports = [each for each in found if isinstance(each, messages.Messages)]
    called = [each for each in found if isinstance(each, calls.Calls)]
    return [each.what for each in message_findings.targets(reports, called) if not each.is_met]


def test_cheap_messages_meet_targets() -> None:
    assert _missed(_messages(), _calls(1.5, 2.25)) == []


def test_expensive_progress_is_reported() -> None:
    assert _missed(_messages(cores=0.51, written_ms=0.081)) == [
        '1,000 transfers that report: conductor',
        '1,000 transfers that report: CPU a report, after its receipt',
    ]


def test_unsent_reports_count_as_load() -> None:
    found = _messages(cores=0.3)
    half = dataclasses.replace(
        found.progress[0], flow=dataclasses.replace(found.progress[0].flow, share=0.5)
    )

    assert half.flow.cores.conductor == pytest.approx(0.6)
    assert _missed(dataclasses.replace(found, progress=[half])) == [
        '1,000 transfers that report: conductor'
    ]


def test_backlog_that_misleads_is_reported() -> None:
    found = _messages(question_seconds=32.0)
    late = dataclasses.replace(found.backlog, lost_up_seconds=143.0, flapped=1)

    assert _missed(dataclasses.replace(found, backlog=late)) == [
        'after 30 s without a conductor: longest question',
        'after 30 s without a conductor: 100 lost hosts up',
        'after 30 s without a conductor: other hosts shown down',
    ]


def test_calls_compared_with_nova() -> None:
    assert _missed(_calls(1.6, 2.3, waiting_kib=61)) == [
        '300 x 1 over RabbitMQ: CPU, ours : Nova',
        '300 x 10 over RabbitMQ: CPU, ours : Nova',
        '300 calls that wait: memory a call',
    ]


def test_calls_without_nova_not_compared() -> None:
    found = dataclasses.replace(_calls(9.0, 9.0), novas=())

    assert _missed(found) == []
    assert [row[1] for row in message_findings.called(found).rows] == ['ours', 'ours']


def test_tables_show_each_process() -> None:
    found = _messages(cores=0.2)

    row = message_findings.reported(found).rows[-1]
    assert row[:3] == ('reports of 1,000 transfers', '100', '100 %')
    assert row[3:] == ('2.00', '0.40', '0.20', '0.20', '0.04', '0.02')
    assert message_findings.written(found).rows == (('1,000', '0.050', '0.06'),)
    assert message_findings.left(found).rows == (('30', '12,000', '80', '0.40', '66', '0'),)
    assert message_findings.called(_calls(1.5, 3.0)).rows[0] == (
        '300 x 1', 'ours', '5.00', '2.00', '1.00', '10.0',
    )  # fmt: skip


def test_results_survive_the_worker() -> None:
    reports, called = _messages(), _calls(1.5, 3.0)

    found = json.loads(json.dumps([dataclasses.asdict(reports), dataclasses.asdict(called)]))

    assert messages.from_json(found[0]) == reports
    assert calls.from_json(found[1]) == called


def test_sent_messages_are_summed() -> None:
    found = agents.total(
        [agents.Sent({'report_state': 3, 'ping': 1}, 6.0, 3), agents.Sent({'ping': 2}, 2.0, 3)]
    )

    assert found == agents.Sent({'report_state': 3, 'ping': 3}, 8.0, 6)
    assert (found.count, found.share) == (6, 0.75)


class _Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _counter(done: list[str], host: str) -> Callable[[], None]:
    return lambda: done.append(host)


def test_turns_are_spread_and_repeated() -> None:
    clock, done = _Clock(), list[str]()
    turns = agents.Turns(clock)
    turns.begin({host: [(10.0, _counter(done, host))] for host in ('a', 'b')})
    wait_until(lambda: done == ['a'], 'the first turn')

    clock.now = 5.0
    wait_until(lambda: done == ['a', 'b'], 'the second host has the middle of the interval')
    clock.now = 10.0
    wait_until(lambda: done == ['a', 'b', 'a'], 'the first host again')

    assert turns.rest() == (2.0, 3)


def test_silent_hosts_have_no_turns() -> None:
    clock, done = _Clock(), list[str]()
    turns = agents.Turns(clock)
    turns.begin({host: [(1.0, _counter(done, host))] for host in ('a', 'b')})
    wait_until(lambda: done == ['a'], 'the first turn')
    turns.silence(['b'])

    clock.now = 1.0
    wait_until(lambda: done == ['a', 'a'], 'the other host goes on')

    assert turns.rest() == (1.0, 2)


def test_waiting_turns_get_more_threads() -> None:
    clock, waiting, free = _Clock(), list[str](), threading.Event()

    def wait() -> None:
        waiting.append('here')
        free.wait()

    turns = agents.Turns(clock)
    turns.punctual_seconds = 60.0  # whatever else the machine does
    turns.begin({f'host-{number}': [(10.0, wait)] for number in range(20)})
    clock.now = 9.9  # each was due once
    wait_until(lambda: len(waiting) == 20, 'all wait at the same time')
    free.set()

    assert turns.rest()[1] == 20


def test_waiting_work_delays_no_rest() -> None:
    began, ended = threading.Event(), threading.Event()
    runs: list[None] = []

    def wait() -> None:
        runs.append(None)
        began.set()
        ended.wait()

    turns = agents.Turns()
    turns.begin({'h1': [(0.01, agents.Aside(wait))]})
    wait_until(began.is_set, 'the work begins')
    wait_until(lambda: turns._done > 1, 'a further turn')

    turns.rest()

    assert not ended.is_set()
    assert len(runs) == 1
    ended.set()


@pytest.mark.parametrize('arguments', [['--transfers=0'], ['--transfers=9', '--report-hosts=8']])
def test_too_many_transfers_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)

    assert '--transfers' in capsys.readouterr().err
