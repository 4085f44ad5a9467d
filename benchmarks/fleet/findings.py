# SPDX-License-Identifier: Apache-2.0
"""Tables of the results of fleets and of stock Nova, and the targets. No I/O."""

from collections.abc import Iterable, Sequence

from benchmarks.fleet import fairness, reads
from benchmarks.fleet.cases import Case, Outcome
from benchmarks.fleet.claims import Claims
from benchmarks.fleet.fairness import Fairness
from benchmarks.fleet.nova import Nova
from benchmarks.fleet.reads import Reads
from benchmarks.report import MIB, Finding, Table

CPU_TARGET_MS = 2.5
FLAT_TARGET = 1.25
MEMORY_TARGET_MIB = 300
REQUEST_TARGET_MS = 5
PAGE_TARGET_MS = 10
WATCHED_TARGET_CORES = 0.5
FIRST_CALL_TARGET_SECONDS = 1
LINEAR_TARGET = 1.5
URGENT_TARGET_IMAGES = 1.5
URGENT_BESIDE_TARGET_IMAGES = 2
CHUNK_TASKS = 1000  # of one transaction of the planner, by default


def measured(outcomes: Iterable[Outcome]) -> Table:
    """Return a table of the cost of a task in each case."""
    head = (
        'hosts x images',
        'CPU ms a task',
        'of it empty RPC calls',
        'MariaDB: CPU ms a task',
        'RabbitMQ: CPU ms a task',
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
        _if_any(found.database_ms_per_task),
        _if_any(found.broker_ms_per_task),
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


def _if_any(value: float) -> str:
    return f'{value:.2f}' if value else ''


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


def read(found: Reads) -> Table:
    """Return a table of the cost of a read."""
    head = ('read', 'p50 ms', 'p95 ms', 'statements', 'API: CPU ms', 'MariaDB: CPU ms')
    rows = [
        (
            each.what,
            f'{each.p50_ms:.1f}',
            f'{each.p95_ms:.1f}',
            f'{each.statements:.1f}',
            f'{each.api_cpu_ms:.1f}',
            f'{each.database_cpu_ms:.1f}',
        )
        for each in found.reads
    ]
    return Table(f'Reads of one client, with {found.tasks:,} tasks in a request', head, tuple(rows))


def watched(found: Reads) -> Table:
    """Return a table of what clients cost that wait for a request."""
    head = (
        'clients that wait',
        'reads a second',
        'answered 304',
        'failed',
        'p50 ms',
        'API: cores',
        'MariaDB: cores',
    )
    each = found.watched
    row = (
        f'{each.watchers:,}',
        f'{each.reads:.0f}',
        f'{each.unchanged_share * 100:.0f} %',
        f'{each.lost_share * 100:.0f} %',
        f'{each.p50_ms:.1f}',
        f'{each.api_cores:.2f}',
        f'{each.database_cores:.2f}',
    )
    return Table(f'Clients that wait for a request of {found.tasks:,} tasks', head, (row,))


def claimed(found: Iterable[Claims]) -> Table:
    """Return a table of the claims of fleets whose hosts are all due at once."""
    head = (
        'hosts due at once',
        'first call s',
        'all called s',
        'longest lock s',
        'CPU ms a host',
        'MariaDB: CPU ms a host',
    )
    rows = [
        (
            each.name,
            f'{each.first_call_seconds:.2f}',
            f'{each.last_call_seconds:.2f}',
            f'{each.lock_seconds:.2f}',
            f'{each.cpu_seconds / each.hosts * 1000:.2f}',
            _if_any((each.database_cpu_seconds or 0) / each.hosts * 1000),
        )
        for each in found
    ]
    return Table('Claims with as many slots as hosts', head, tuple(rows))


def shared(found: Fairness) -> Table:
    """Return a table of who gets the slots."""
    rows = tuple((each.what, f'{each.value:.4g}') for each in _fairness(found))
    return Table('Slots in use, in times of an image', ('what', 'measured'), rows)


def targets(
    outcomes: Sequence[Outcome] = (),
    looked: Sequence[Reads] = (),
    claims: Sequence[Claims] = (),
    shares: Sequence[Fairness] = (),
) -> list[Finding]:
    """Compare the results with the targets."""
    return [
        *_cpu(outcomes),
        *_flat(outcomes),
        *_memory(outcomes),
        *_planning(outcomes),
        *(finding for each in looked for finding in _reads(each)),
        *_first_calls(claims),
        *_linear(claims),
        *(finding for each in shares for finding in _fairness(each)),
    ]


def _reads(found: Reads) -> Iterable[Finding]:
    for each in found.reads:
        target = REQUEST_TARGET_MS if each.what == reads.REQUEST else PAGE_TARGET_MS
        yield Finding(f'{found.tasks:,} tasks: {each.what}, p50', each.p50_ms, 'ms', target)
    what = f'{found.tasks:,} tasks: {found.watched.watchers:,} clients that wait'
    yield Finding(what, found.watched.cores, 'cores', WATCHED_TARGET_CORES)
    yield Finding(f'{what}: failed reads', found.watched.lost_share * 100, '%', 0)


def _first_calls(found: Iterable[Claims]) -> Iterable[Finding]:
    for each in found:
        what = f'{each.name} due at once: first call'
        yield Finding(what, each.first_call_seconds, 's', FIRST_CALL_TARGET_SECONDS)


def _linear(found: Sequence[Claims]) -> Iterable[Finding]:
    """Compare the time a host of the largest fleet with that of the smallest."""
    for database in dict.fromkeys(each.database for each in found):
        group = [each for each in found if each.database == database]
        least, most = min(group, key=_claimed_hosts), max(group, key=_claimed_hosts)
        if most.hosts > least.hosts:
            yield Finding(
                f'{most.name} due at once: time a host, as with {least.hosts:,} hosts',
                most.last_call_seconds / most.hosts * least.hosts / least.last_call_seconds,
                target=LINEAR_TARGET,
            )


def _fairness(found: Fairness) -> Iterable[Finding]:
    yield Finding(
        f'urgent request for {fairness.URGENT_HOSTS} hosts behind {fairness.LONG_IMAGES} images '
        'a host: all called',
        found.urgent_images,
        'image times',
        URGENT_TARGET_IMAGES,
    )
    beside = f'beside {fairness.STALLING_HOSTS} stalling hosts'
    yield Finding(
        f'{fairness.FAST_HOSTS} fast hosts {beside}: without the image after '
        f'{fairness.ENOUGH_IMAGES} image times',
        found.fast_left,
        'hosts',
        0,
    )
    yield Finding(
        f'urgent request for {fairness.URGENT_BESIDE_HOSTS} fast hosts {beside}: all called',
        found.urgent_beside_images,
        'image times',
        URGENT_BESIDE_TARGET_IMAGES,
    )
    yield Finding(
        f'{fairness.BESIDE_CRAWLING} hosts behind a crawling one, one slot: without the image '
        f'after {fairness.ENOUGH_IMAGES} image times',
        found.left_beside_crawling,
        'hosts',
        0,
    )


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


def _claimed_hosts(found: Claims) -> int:
    return found.hosts
