# SPDX-License-Identifier: Apache-2.0
"""Tables of results: medians, ratios, and whether a target is met. No I/O."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence

KIB = 1024
MIB = 1024**2
GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Sample:
    """One contestant in one round; None is not measured.

    :ivar memory_bytes: peak of the process above its memory when idle
    :ivar page_cache_bytes: of all files in the cache directory
    :ivar disk_bytes: of the published file
    """

    wall_seconds: float
    cpu_seconds: float | None = None
    memory_bytes: int | None = None
    page_cache_bytes: int | None = None
    disk_bytes: int | None = None


# By case, then by contestant: a sample a round.
Results = dict[str, dict[str, list[Sample]]]


@dataclasses.dataclass(frozen=True)
class Finding:
    """A result that is compared with a target, if it has one."""

    what: str
    value: float
    unit: str = ''
    target: float | None = None

    @property
    def is_met(self) -> bool:
        return self.target is None or self.value <= self.target


@dataclasses.dataclass(frozen=True)
class Table:
    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def measured(results: Results) -> Table:
    """Return the medians of each contestant in each case, with the range of its wall time."""
    rows = [
        (
            case,
            who,
            _wall(samples),
            _number(_median(samples, lambda sample: sample.cpu_seconds), 1, '.2f'),
            _number(_median(samples, lambda sample: sample.memory_bytes), MIB, '.1f'),
            _number(_median(samples, lambda sample: sample.page_cache_bytes), MIB, '.1f'),
            _number(_median(samples, lambda sample: sample.disk_bytes), MIB, '.0f'),
        )
        for case, contestants in results.items()
        for who, samples in contestants.items()
    ]
    head = ('case', 'who', 'wall s', 'CPU s', 'memory MiB', 'page cache MiB', 'on disk MiB')
    return Table('Medians', head, tuple(rows))


def compared(findings: Iterable[Finding]) -> Table:
    """Return a table of findings and their targets."""
    rows = [
        (
            finding.what,
            _quantity(finding.value, finding.unit),
            '' if finding.target is None else f'≤ {_quantity(finding.target, finding.unit)}',
            '' if finding.target is None else ('met' if finding.is_met else 'NOT met'),
        )
        for finding in findings
    ]
    return Table('Targets', ('what', 'measured', 'target', ''), tuple(rows))


def findings(results: Results, data_bytes: dict[str, int]) -> list[Finding]:
    """Compare the results with the targets.

    :param data_bytes: by case, the size of its image without holes
    """
    return [
        *_speed(results, 'raw', 'Nova', 0.65, hash_target=1.15),
        *_speed(results, 'qcow2', 'Nova', 0.75),
        *_speed(results, 'two at once', 'one image'),
        *_memory(results),
        *_page_cache(results),
        *_on_disk(results, data_bytes),
        *_existing(results),
    ]


def _speed(
    results: Results,
    case: str,
    other: str,
    target: float | None = None,
    *,
    hash_target: float | None = None,
) -> Iterable[Finding]:
    found = results.get(case, {})
    if hash_target and 'sha512' in found:
        yield from _beside_hash(case, found, hash_target)
    if other not in found:
        return
    yield Finding(
        f'{case}: wall, ours : {other}', ratio(found['ours'], found[other], _wall_of), '', target
    )
    if target is not None:
        value = ratio(found['ours'], found[other], _cpu_of)
        yield Finding(f'{case}: CPU, ours : {other}', value, target=1.0)


def _beside_hash(case: str, found: dict[str, list[Sample]], target: float) -> Iterable[Finding]:
    """Compare with the hash alone, which each download needs, and with the lower bound."""
    ours, alone, least = (found[who] for who in ('ours', 'sha512', 'the least'))
    yield Finding(f'{case}: wall, ours : sha512', ratio(ours, alone, _wall_of), target=target)
    best = min(map(_wall_of, ours)) / min(map(_wall_of, alone))
    yield Finding(f'{case}: wall, ours : sha512, the best rounds', best, target=target)
    yield Finding(f'{case}: wall, the least : sha512', ratio(least, alone, _wall_of))
    yield Finding(f'{case}: wall, ours : the least', ratio(ours, least, _wall_of))


def _memory(results: Results) -> Iterable[Finding]:
    for case, contestants in results.items():
        taken = _known(contestants.get('ours', []), lambda sample: sample.memory_bytes)
        if taken:
            yield Finding(f'{case}: memory above idle, at most', max(taken) / MIB, 'MiB', 64)


def _page_cache(results: Results) -> Iterable[Finding]:
    for case, contestants in results.items():
        left = _known(contestants.get('ours', []), lambda sample: sample.page_cache_bytes)
        if left:
            yield Finding(f'{case}: page cache afterwards, at most', max(left) / MIB, 'MiB', 8)


def _on_disk(results: Results, data_bytes: dict[str, int]) -> Iterable[Finding]:
    for case, data in data_bytes.items():
        taken = _known(results.get(case, {}).get('ours', []), lambda sample: sample.disk_bytes)
        if taken:
            yield Finding(f'{case}: on disk, file : data', max(taken) / data, target=1.1)


def _existing(results: Results) -> Iterable[Finding]:
    samples = results.get('existing', {}).get('ours', [])
    if samples:
        value = statistics.median(sample.wall_seconds for sample in samples) * 1000
        yield Finding('existing: a call', value, 'ms', 1)


def ratio(ours: Sequence[Sample], theirs: Sequence[Sample], of: Callable[[Sample], float]) -> float:
    """Return the median of the rounds' ratios, in which a slow round cancels out."""
    pairs = zip(ours, theirs, strict=True)
    return statistics.median(of(one) / of(other) for one, other in pairs)


def text(table: Table) -> str:
    """Format a table for a terminal."""
    lines = [table.head, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.head))]
    laid_out = [
        '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    rule = '  '.join('-' * width for width in widths)
    return '\n'.join([table.title, '', laid_out[0], rule, *laid_out[1:]])


def restructured(table: Table) -> str:
    """Format a table for the documentation."""
    lines = [f'.. list-table:: {table.title}', '   :header-rows: 1', '']
    for row in (table.head, *table.rows):
        for column, cell in enumerate(row):
            bullet = '   * -' if column == 0 else '     -'
            lines.append(f'{bullet} {cell}'.rstrip())
    return '\n'.join(lines)


def _wall_of(sample: Sample) -> float:
    return sample.wall_seconds


def _cpu_of(sample: Sample) -> float:
    assert sample.cpu_seconds is not None
    return sample.cpu_seconds


def _known(samples: Iterable[Sample], of: Callable[[Sample], float | None]) -> list[float]:
    return [value for value in map(of, samples) if value is not None]


def _median(samples: Iterable[Sample], of: Callable[[Sample], float | None]) -> float | None:
    known = _known(samples, of)
    return statistics.median(known) if known else None


def _wall(samples: Sequence[Sample]) -> str:
    taken = [sample.wall_seconds for sample in samples]
    middle = statistics.median(taken)
    if middle < 0.01:
        return f'{middle:.6f}'
    spread = f' ({min(taken):.2f} to {max(taken):.2f})' if len(taken) > 1 else ''
    return f'{middle:.2f}{spread}'


def _number(value: float | None, unit: int, form: str) -> str:
    return '' if value is None else format(value / unit, form)


def _quantity(value: float, unit: str) -> str:
    if not unit:
        return f'{value:.2f}'
    return f'{value:.3g} {unit}'
