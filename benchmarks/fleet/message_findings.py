# SPDX-License-Identifier: Apache-2.0
"""Tables of the results with messages over a real broker, and their targets. No I/O."""

from collections.abc import Iterable, Sequence

from benchmarks.fleet import conductor
from benchmarks.fleet.calls import Called, Calls
from benchmarks.fleet.messages import Flow, Messages
from benchmarks.report import KIB, MIB, Finding, Table

REPORT_TARGET_MS = 0.08
PROGRESS_TARGET_CORES = 0.5
QUESTION_TARGET_SECONDS = 1
# Above [DEFAULT] service_down_time: reports are written every 5 seconds.
LATE_TARGET_SECONDS = 15
ONE_IMAGE_TARGET, MORE_IMAGES_TARGET = 1.0, 1.5
WAITING_TARGET_KIB = 60


def reported(found: Messages) -> Table:
    """Return a table of the cost of the messages that agents send."""
    head = (
        'messages',
        'a second',
        'sent of those due',
        'conductor: CPU ms a message',
        'MariaDB: CPU ms a message',
        'RabbitMQ: CPU ms a message',
        'conductor: cores',
        'MariaDB: cores',
        'RabbitMQ: cores',
    )
    flows = (found.registrations, found.heartbeats, *(each.flow for each in found.progress))
    return Table('Reports of agents over RabbitMQ', head, tuple(map(_flow, flows)))


def _flow(found: Flow) -> tuple[str, ...]:
    return (
        found.what,
        f'{found.rate:,.0f}',
        f'{found.share * 100:.0f} %',
        *_three(found.ms_per_message),
        *_three(found.cores),
    )


def _three(cpu: conductor.Cpu) -> tuple[str, ...]:
    return tuple(f'{each:.2f}' for each in (cpu.conductor, cpu.database, cpu.broker))


def written(found: Messages) -> Table:
    """Return a table of what the progress of transfers costs without its messages."""
    rows = tuple(
        (f'{each.transfers:,}', f'{each.written_ms:.3f}', f'{each.write_seconds:.2f}')
        for each in found.progress
    )
    head = ('transfers', 'CPU ms a report', 'longest write s')
    return Table('Progress of transfers, after its receipt', head, rows)


def left(found: Messages) -> Table:
    """Return a table of what a time without a conductor leaves."""
    each = found.backlog
    head = (
        'without a conductor s',
        'messages that wait',
        'RabbitMQ: MiB more',
        'longest question s',
        'lost hosts up s',
        'other hosts shown down',
    )
    row = (
        f'{each.silence_seconds:g}',
        f'{each.messages:,}',
        f'{each.broker_bytes / MIB:.0f}',
        f'{each.question_seconds:.2f}',
        f'{each.lost_up_seconds:.0f}',
        f'{each.flapped:,}',
    )
    return Table(f'A backlog of {found.hosts:,} hosts', head, (row,))


def called(found: Calls) -> Table:
    """Return a table of the cost of calls with our conductor and with Nova's."""
    head = (
        'hosts x images',
        'who',
        'conductor: CPU ms a host',
        'MariaDB: CPU ms a host',
        'RabbitMQ: CPU ms a host',
        'wall ms a host',
    )
    whose = (('ours', found.ours), ('Nova', found.novas))
    rows = [
        (
            f'{found.hosts:,} x {each.images}',
            who,
            *_three(each.cpu.times(1000 / found.hosts)),
            f'{each.wall_seconds * 1000 / found.hosts:.1f}',
        )
        for who, calls in whose
        for each in calls
    ]
    return Table('Calls of hosts over RabbitMQ', head, tuple(rows))


def targets(reports: Sequence[Messages] = (), calls: Sequence[Calls] = ()) -> list[Finding]:
    """Compare the results with the targets."""
    return [
        *(finding for each in reports for finding in (*_progress(each), *_backlog(each))),
        *(finding for each in calls for finding in _calls(each)),
    ]


def _progress(found: Messages) -> Iterable[Finding]:
    for each in found.progress:
        what = f'{each.transfers:,} transfers that report'
        yield Finding(
            f'{what}: conductor', each.flow.cores.conductor, 'cores', PROGRESS_TARGET_CORES
        )
        yield Finding(
            f'{what}: CPU a report, after its receipt', each.written_ms, 'ms', REPORT_TARGET_MS
        )


def _backlog(found: Messages) -> Iterable[Finding]:
    each = found.backlog
    after = f'after {each.silence_seconds:g} s without a conductor'
    yield Finding(f'{after}: longest question', each.question_seconds, 's', QUESTION_TARGET_SECONDS)
    yield Finding(
        f'{after}: {each.lost_hosts:,} lost hosts up',
        each.lost_up_seconds,
        's',
        each.down_seconds + LATE_TARGET_SECONDS,
    )
    yield Finding(f'{after}: other hosts shown down', each.flapped, 'hosts', 0)


def _calls(found: Calls) -> Iterable[Finding]:
    novas = {each.images: each for each in found.novas}
    for each in found.ours:
        if (other := novas.get(each.images)) is not None:
            yield _beside_nova(found.hosts, each, other)
    yield Finding(
        f'{found.hosts:,} calls that wait: memory a call',
        found.waiting_bytes / KIB,
        'KiB',
        WAITING_TARGET_KIB,
    )


def _beside_nova(hosts: int, ours: Called, other: Called) -> Finding:
    return Finding(
        f'{hosts:,} x {ours.images} over RabbitMQ: CPU, ours : Nova',
        ours.cpu.conductor / other.cpu.conductor,
        target=ONE_IMAGE_TARGET if ours.images == 1 else MORE_IMAGES_TARGET,
    )
