# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a fleet's measurements, and that a small fleet can be measured."""

import dataclasses
import json
import pathlib
import warnings
from typing import Any

import pytest

with warnings.catch_warnings():
    # Those of the openstack client's modules as they are imported.
    warnings.simplefilter('ignore')
    from benchmarks.fleet import (
        __main__ as command,
        cases,
        claims,
        fairness,
        findings,
        nova,
        reads,
        worker,
    )

NOTHING = cases.Cost(0, 0, 0, 0, 0)
MIB = 1024**2


def _outcome(case: cases.Case, cpu_ms: float, **fields: Any) -> cases.Outcome:
    """A case with this CPU time per task, a fifth of it for planning."""
    seconds = cpu_ms * case.tasks / 1000
    known: dict[str, Any] = {
        'plan': cases.Cost(1.0, seconds / 5, 10, 2, 3),
        'work': cases.Cost(2.0, seconds * 4 / 5, 50, 20, 15),
        'planning': cases.Planning(reads=10, inserts=2, updates=3),
        'first_cpu_seconds': 0.25,
        'idle': cases.Cost(1.0, 0, 0, 0, 0),
        'get_seconds': 0.004,
        'peak_bytes': 100 * MIB,
        'idle_bytes': 90 * MIB,
    }
    return cases.Outcome(case=case, **{**known, **fields})


def _missed(*outcomes: cases.Outcome) -> list[str]:
    return [each.what for each in findings.targets(outcomes) if not each.is_met]


SMALL, LARGE = cases.Case('sqlite', 100), cases.Case('sqlite', 10_000)


def test_task_cost_sums_planning_and_work() -> None:
    found = _outcome(SMALL, 2.0)

    assert found.cpu_ms_per_task == pytest.approx(2.0)
    assert found.wall_ms_per_task == pytest.approx(30)
    assert found.statements_per_task == pytest.approx(1.0)


def test_idle_cost_not_of_task() -> None:
    found = _outcome(SMALL, 2.0, idle=cases.Cost(2.0, 0.04, 0, 0, 0))

    assert found.idle_share == pytest.approx(0.02)
    assert found.cpu_ms_per_task == pytest.approx(2.0 - 0.02 * found.wall_ms_per_task)


def test_constant_task_cost_meets_targets() -> None:
    assert _missed(_outcome(SMALL, 2.0), _outcome(LARGE, 2.4)) == []


def test_growing_task_cost_reported() -> None:
    assert _missed(_outcome(SMALL, 1.0), _outcome(LARGE, 1.3)) == [
        '10,000 x 1 in 2 cells, sqlite: CPU a task, as with 100 hosts'
    ]


def test_differently_configured_fleets_not_compared() -> None:
    other = dataclasses.replace(LARGE, cells=20)

    assert _missed(_outcome(SMALL, 1.0), _outcome(other, 2.4)) == []


def test_excess_cpu_and_memory_reported() -> None:
    assert _missed(_outcome(SMALL, 2.6, peak_bytes=301 * MIB)) == [
        '100 x 1 in 2 cells, sqlite: CPU a task',
        '100 x 1 in 2 cells, sqlite: memory, at most',
    ]


def test_broker_cost_is_separate_without_target() -> None:
    case = dataclasses.replace(SMALL, broker=True)
    rpc = cases.Rpc(made_seconds=0.002, served_seconds=0.001, made_wall_seconds=0.005)
    found = _outcome(case, 5.4, rpc=rpc)

    (row,) = findings.measured([found]).rows

    assert row[1:5] == ('5.40', '3.00', '', '')
    assert not [each for each in findings.targets([found]) if 'CPU' in each.what]


def test_cpu_of_servers_shown_apart() -> None:
    work = cases.Cost(2.0, 0.2, 50, 20, 15, database_cpu_seconds=0.04, broker_cpu_seconds=0.09)
    case = dataclasses.replace(SMALL, database='mariadb', broker=True)

    (row,) = findings.measured([_outcome(case, 2.0, work=work)]).rows

    assert row[3:5] == ('0.40', '0.90')


def _reads(request_ms: float, page_ms: float, api_cores: float) -> reads.Reads:
    taken = {reads.REQUEST: request_ms, reads.TASKS: page_ms, reads.ALL_TASKS: page_ms}
    each = [reads.Read(what, p50, 2 * p50, 3.0, 1.5, 0.5) for what, p50 in taken.items()]
    return reads.Reads(
        'mariadb', 100_000, each, reads.Watched(200, 250.0, 0.9, 0.0, 1.2, api_cores, 0.1)
    )


def test_fast_reads_meet_targets() -> None:
    found = _reads(5.0, 10.0, 0.4)

    assert all(each.is_met for each in findings.targets(looked=[found]))
    assert findings.read(found).rows[0] == ('a request', '5.0', '10.0', '3.0', '1.5', '0.5')
    assert findings.watched(found).rows == (('200', '250', '90 %', '0 %', '1.2', '0.40', '0.10'),)


def test_slow_reads_are_reported() -> None:
    found = _reads(5.1, 10.1, 0.41)

    assert [each.what for each in findings.targets(looked=[found]) if not each.is_met] == [
        '100,000 tasks: a request, p50',
        '100,000 tasks: 20 of its tasks, p50',
        '100,000 tasks: 20 of all tasks, p50',
        '100,000 tasks: 200 clients that wait',
    ]


def test_failed_reads_are_reported() -> None:
    fast = _reads(5.0, 10.0, 0.1)
    found = dataclasses.replace(fast, watched=dataclasses.replace(fast.watched, failed_share=0.01))

    assert [each.what for each in findings.targets(looked=[found]) if not each.is_met] == [
        '100,000 tasks: 200 clients that wait: failed reads'
    ]


def test_missing_reads_are_reported() -> None:
    fast = _reads(5.0, 10.0, 0.0)
    found = dataclasses.replace(fast, watched=dataclasses.replace(fast.watched, reads=0.0))

    assert [each.what for each in findings.targets(looked=[found]) if not each.is_met] == [
        '100,000 tasks: 200 clients that wait: failed reads'
    ]
    assert findings.watched(found).rows[0][3] == '100 %'


def test_quadratic_claims_are_reported() -> None:
    small = claims.Claims('sqlite', 1000, 0.3, 2.0, 0.3, 1.5)
    large = claims.Claims('sqlite', 10_000, 1.1, 31.0, 1.1, 15.0)
    other = claims.Claims('mariadb', 10_000, 1.0, 99.0, 0.1, 15.0, 4.0)

    missed = [each for each in findings.targets(claims=[small, large, other]) if not each.is_met]

    assert [each.what for each in missed] == [
        '10,000 hosts, sqlite due at once: first call',
        '10,000 hosts, sqlite due at once: time a host, as with 1,000 hosts',
    ]
    assert findings.claimed([other]).rows == (
        ('10,000 hosts, mariadb', '1.00', '99.00', '0.10', '1.50', '0.40'),
    )


def test_unfair_slots_are_reported() -> None:
    fair = fairness.Fairness(1.0, 1.2, 0, 1.5, 0)
    unfair = fairness.Fairness(1.0, 9.5, 1, 15.0, 5)

    assert all(each.is_met for each in findings.targets(shares=[fair]))
    assert not any(each.is_met for each in findings.targets(shares=[unfair]))
    assert [value for _, value in findings.shared(unfair).rows] == ['9.5', '1', '15', '5']


def test_each_cell_count_has_own_delay() -> None:
    chosen = cases.choose(['sqlite'], [100], [2, 20, 200], [1], [0, 50], 16)

    assert [(case.cells, case.delay_ms) for case in chosen] == [(2, 0), (20, 50), (200, 50)]


def test_values_measured_per_fleet_and_database() -> None:
    databases, sizes = ['sqlite', 'mariadb'], [100, 1000, 10_000]
    chosen = cases.choose(databases, sizes, [2, 20], [1, 10], [0, 50], 16)

    for axis, values in (('cells', {2, 20}), ('images', {1, 10}), ('delay_ms', {0, 50})):
        for database in databases:
            for hosts in sizes:
                these = [c for c in chosen if (c.database, c.hosts) == (database, hosts)]
                assert {getattr(case, axis) for case in these} == values


def test_large_fleets_skip_slow_computes() -> None:
    chosen = cases.choose(
        ['sqlite', 'mariadb'], [100, 10_000], [2, 20], [1, 10], [0, 50], 16, every=True
    )

    assert len(chosen) == 2 * 2 * (4 + 3)
    assert max(case.tasks for case in chosen if case.delay_ms) == cases.SLOW_TASKS
    assert chosen[-1].tasks == 100_000


def test_tables_show_every_case_and_nova() -> None:
    table = findings.measured([_outcome(SMALL, 2.0)])
    stock = findings.stock([nova.Nova(100, 10, 400, 1.0, 0.7)])

    assert table.rows[0][:2] == ('100 x 1 in 2 cells, sqlite', '2.00')
    assert len(table.rows[0]) == len(table.head)
    assert stock.rows == (('100 x 10', '7.00', '10.00', '4.0'),)


def test_small_fleet_can_be_measured(tmp_path: pathlib.Path) -> None:
    case = cases.Case('sqlite', hosts=3, images=2, parallel=2)

    found = worker.measure(case, f'sqlite:///{tmp_path}/fleet.sqlite')

    assert found.case == case
    assert found.work.statements > found.case.tasks
    assert found.planning.inserts > 0
    assert found.planning.statements < found.plan.statements + found.work.statements
    assert found.first_cpu_seconds > 0
    assert found.idle_share > 0
    assert found.cpu_ms_per_task > 0
    assert found.peak_bytes >= found.idle_bytes > 0
    assert cases.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_small_request_can_be_read(tmp_path: pathlib.Path) -> None:
    url = f'sqlite:///{tmp_path}/fleet.sqlite'

    found = reads.measure('sqlite', 6, 2, 2, 1.0, url, url, count=2)

    assert found.tasks == 12
    assert [each.what for each in found.reads] == [
        reads.REQUEST,
        reads.TASKS,
        reads.ALL_TASKS,
        reads.REQUESTS,
    ]
    assert all(0 < each.p50_ms <= each.p95_ms for each in found.reads)
    assert found.watched.watchers == 2
    assert reads.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def test_small_claim_can_be_measured(tmp_path: pathlib.Path) -> None:
    found = claims.measure('sqlite', 5, f'sqlite:///{tmp_path}/fleet.sqlite')

    assert (found.database, found.hosts) == ('sqlite', 5)
    assert 0 < found.first_call_seconds <= found.last_call_seconds
    assert found.lock_seconds > 0


def test_fairness_can_be_measured() -> None:
    found = fairness.measure(0.02)

    assert 0 <= found.fast_left <= fairness.FAST_HOSTS
    assert 0 <= found.left_beside_crawling <= fairness.BESIDE_CRAWLING
    assert min(found.urgent_images, found.urgent_beside_images) > 0


@pytest.mark.parametrize(
    'arguments',
    [
        ['--hosts=0'],
        ['--database=oracle'],
        ['--images=ten'],
        ['--part=writes'],
        ['--claim-hosts=0'],
    ],
)
def test_unmeasurable_options_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)

    assert arguments[0].partition('=')[0] in capsys.readouterr().err
