# SPDX-License-Identifier: Apache-2.0
"""How measurements become ratios and verdicts."""

import pytest

from benchmarks import report
from benchmarks.report import Finding, Sample

MIB = 1024**2


def _samples(*wall_seconds: float, cpu_seconds: float | None = None) -> list[Sample]:
    return [Sample(seconds, cpu_seconds) for seconds in wall_seconds]


def _found(results: report.Results, **data_bytes: int) -> dict[str, Finding]:
    return {each.what: each for each in report.findings(results, data_bytes)}


def test_slow_round_does_not_change_ratio() -> None:
    ours = _samples(1, 10, 1)
    theirs = _samples(2, 20, 2)

    assert report.ratio(ours, theirs, lambda sample: sample.wall_seconds) == 0.5


def test_raw_compared_with_hash_and_nova() -> None:
    found = _found(
        {
            'raw': {
                'sha512': _samples(1, 1.1, 1),
                'the least': _samples(1.5, 1.1, 1.5),
                'Nova': _samples(2, 2, 2, cpu_seconds=1),
                'ours': _samples(1.2, 1.1, 1.2, cpu_seconds=1),
            }
        }
    )

    assert found['raw: wall, ours : sha512'].value == 1.2
    assert not found['raw: wall, ours : sha512'].is_met
    best = found['raw: wall, ours : sha512, the best rounds']
    assert (best.value, best.is_met) == (1.1, True)
    assert found['raw: wall, ours : the least'].value == pytest.approx(0.8)
    assert found['raw: wall, the least : sha512'].value == 1.5
    assert found['raw: wall, ours : Nova'].is_met
    assert found['raw: CPU, ours : Nova'].is_met


def test_highest_memory_and_page_cache_count() -> None:
    samples = [Sample(1, 1, 10 * MIB, 0), Sample(1, 1, 65 * MIB, 9 * MIB), Sample(1, 1, 1, 0)]

    found = _found({'large': {'ours': samples}})

    assert not found['large: memory above idle, at most'].is_met
    assert not found['large: page cache afterwards, at most'].is_met


@pytest.mark.parametrize(('disk_bytes', 'is_met'), [(105, True), (112, False)])
def test_sparse_file_may_exceed_its_data(disk_bytes: int, is_met: bool) -> None:
    results = {'holes': {'ours': [Sample(1, disk_bytes=disk_bytes)]}}

    assert _found(results, holes=100)['holes: on disk, file : data'].is_met is is_met


def test_existing_image_shown_in_milliseconds() -> None:
    finding = _found({'existing': {'ours': _samples(0.0002)}})['existing: a call']

    assert (finding.value, finding.unit, finding.is_met) == (pytest.approx(0.2), 'ms', True)


def test_unmeasured_values_not_judged() -> None:
    assert report.findings({'large': {'ours': _samples(1)}}, {'holes': 1}) == []


def test_tables_show_medians_and_verdicts() -> None:
    results: report.Results = {'raw': {'ours': _samples(1, 2, 6, cpu_seconds=3)}}

    measured = report.measured(results)
    compared = report.compared(
        [Finding('a', 2.0, '', 1.0), Finding('b', 0.5, 'ms', 1), Finding('c', 3)]
    )

    assert measured.rows == (('raw', 'ours', '2.00 (1.00 to 6.00)', '3.00', '', '', ''),)
    assert compared.rows == (
        ('a', '2.00', '≤ 1.00', 'NOT met'),
        ('b', '0.5 ms', '≤ 1 ms', 'met'),
        ('c', '3.00', '', ''),
    )


def test_table_has_columns_and_list_form() -> None:
    table = report.Table('Medians', ('case', 'who'), (('raw', 'ours'), ('qcow2', '')))

    assert report.text(table).splitlines()[2:] == [
        'case   who',
        '-----  ----',
        'raw    ours',
        'qcow2',
    ]
    assert report.restructured(table).splitlines() == [
        '.. list-table:: Medians',
        '   :header-rows: 1',
        '',
        '   * - case',
        '     - who',
        '   * - raw',
        '     - ours',
        '   * - qcow2',
        '     -',
    ]
