# SPDX-License-Identifier: Apache-2.0
"""Tables of the results of fleets and of stock Nova, and the targets. No I/O."""

from collections.abc import Iterable, Sequence

from benchmarks.fleet.cases import Case, Outcome
from benchmarks.fleet.nova import Nova
from benchmarks.report import MIB, Finding, Table

CPU_TARGET_MS = 2.5
FLAT_TARGET = 1.25
MEMORY_TARGET_MIB = 300
CHUNK_TASKS = 1000  # of one transaction of the planner, by default


def measured(outcomes: Iterable[Outcome]) -> Table:
    """Return a table of the cost of a task in each case."""
    head = (
        'hosts x images',
        'CPU ms a task',
        'of it empty RPC calls',
        'wall ms a task',
        'statements a task',
        'peak MiB',
        'GET ms',
        'plan: reads and updates',
        'plan: inserts',
        'plan: CPU ms a task',
        'once: CPU ms',
        'idle: CPU %',
    )
    return Table('A conductor and its fleet', head, tuple(map(_row, outcomes)))


def _row(found: Outcome) -> tuple[str, ...]:
    rpc = found.rpc_ms_per_task
    return (
        found.case.name,
        f'{found.cpu_ms_per_task:.2f}',
        '' if rpc is None else f'{rpc:.2f}',
        f'{found.wall_ms_per_task:.2f}',
        f'{found.statements_per_task:.1f}',
        f'{found.peak_bytes / MIB:.0f}',
        f'{found.get_seconds * 1000:.1f}',
        f'{found.planning.reads + found.planning.updates}',
        f'{found.planning.inserts}',
        f'{found.plan.cpu_seconds / found.case.tasks * 1000:.2f}',
        f'{found.first_cpu_seconds * 1000:.0f}',
        f'{found.idle_share * 100:.1f}',
    )


def stock(found: Sequence[Nova]) -> Table:
    """Return a table of the cost of a host with stock Nova, which gets all images in one call."""
    head = ('hosts x images', 'CPU ms a host', 'wall ms a host', 'statements a host')
    rows = [
        (
            f'{each.hosts:,} x {each.images}',
            f'{each.cpu_ms_per_host:.2f}',
            f'{each.wall_seconds / each.hosts * 1000:.2f}',
            f'{each.statements_per_host:.1f}',
        )
        for each in found
    ]
    return Table('Stock Nova: computes that answer at once, nothing tracked', head, tuple(rows))


def targets(outcomes: Sequence[Outcome]) -> list[Finding]:
    """Compare the results with the targets."""
    return [
        *_cpu(outcomes),
        *_flat(outcomes),
        *_memory(outcomes),
        *_planning(outcomes),
    ]


def _cpu(outcomes: Iterable[Outcome]) -> Iterable[Finding]:
    """Compare CPU times without a broker, whose client is not part of the target."""
    for found in outcomes:
        if found.rpc is None:
            what = f'{found.case.name}: CPU a task'
            yield Finding(what, found.cpu_ms_per_task, 'ms', CPU_TARGET_MS)


def _flat(outcomes: Sequence[Outcome]) -> Iterable[Finding]:
    """Compare the largest fleet with the smallest that differs only in the number of hosts."""
    alike: dict[Case, list[Outcome]] = {}
    for found in outcomes:
        alike.setdefault(found.case.of_any_size(), []).append(found)
    for group in alike.values():
        least, most = min(group, key=_hosts), max(group, key=_hosts)
        if most.case.hosts > least.case.hosts:
            yield Finding(
                f'{most.case.name}: CPU a task, as with {least.case.hosts:,} hosts',
                most.cpu_ms_per_task / least.cpu_ms_per_task,
                target=FLAT_TARGET,
            )


def _memory(outcomes: Iterable[Outcome]) -> Iterable[Finding]:
    for found in outcomes:
        yield Finding(
            f'{found.case.name}: memory, at most', found.peak_bytes / MIB, 'MiB', MEMORY_TARGET_MIB
        )


def _planning(outcomes: Iterable[Outcome]) -> Iterable[Finding]:
    """Show the statements a transaction, which must not grow with the hosts."""
    for found in outcomes:
        transactions = -(-found.case.tasks // CHUNK_TASKS)
        yield Finding(
            f'{found.case.name}: statements to plan, by transaction',
            found.planning.statements / transactions,
        )


def _hosts(found: Outcome) -> int:
    return found.case.hosts
