# SPDX-License-Identifier: Apache-2.0
"""Command line arguments: sizes, rates, times, and options that commands share."""

import argparse
import datetime
import functools
import re
from collections.abc import Sequence

import durationpy
from osc_lib import exceptions
from oslo_utils import strutils

from nova_precache.osc.client import Json

_TIME_HELP = 'ISO 8601 (default zone: UTC) or an offset from now, such as +2h or +1h30m'
# The fields of the API whose arguments have another name.
_FIELDS = {'max_rate': 'max_rate_bytes', 'project': 'project_id'}
_SHOWN = 60
_MOST_BYTES = 2**63 - 1
_MOST_DIGITS = 18
_SIZE_HELP = 'plain bytes or a binary unit, such as 50M or 1G'


def size(text: str) -> int:
    """Parse a number of bytes: 1048576, 1M, 1MiB."""
    try:
        number = text if text.endswith('B') else f'{text}B'
        found = int(strutils.string_to_bytes(number, unit_system='IEC', return_int=True))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f'{shown(text)} is not a size: expected {_SIZE_HELP}'
        ) from None
    if found < 0:
        raise argparse.ArgumentTypeError(f'{shown(text)} must not be negative')
    if found > _MOST_BYTES:
        raise argparse.ArgumentTypeError(f'{shown(text)} must be less than 8 EiB')
    return found


def integer(text: str) -> int:
    """Parse an integer that fits into 64 bits."""
    if re.fullmatch('[+-]?[0-9]+', text) is None:
        raise argparse.ArgumentTypeError(f'{shown(text)} is not an integer')
    if len(text) > _MOST_DIGITS:
        raise argparse.ArgumentTypeError(f'{shown(text)} has more than {_MOST_DIGITS} digits')
    return int(text)


def rate(text: str) -> int:
    """Parse a number of bytes per second: 50M, 50M/s."""
    found = size(text.removesuffix('/s'))
    if found == 0:
        raise argparse.ArgumentTypeError(f'{shown(text)} must be greater than zero')
    return found


def parse_time(text: str) -> str:
    """Parse a time, or a duration from now, and return it as ISO 8601 in UTC."""
    span = _span(text)
    return _to_iso(span if span is not None else _time(text), text)


def past_moment(text: str) -> str:
    """Parse a time, or a duration before now, and return it as ISO 8601 in UTC."""
    span = _span(text.removeprefix('-'))
    return _to_iso(-span if span is not None else _time(text), text)


def seconds(text: str) -> float:
    """Parse a duration: 90, 90s, 1h30m."""
    span = _span(f'{text}s' if text.isdecimal() else text)
    if span is None:
        raise argparse.ArgumentTypeError(
            f'{shown(text)} is not a duration: expected seconds, or a duration such as 1h30m'
        )
    if span <= datetime.timedelta():
        raise argparse.ArgumentTypeError(f'{shown(text)} must be greater than zero')
    return span.total_seconds()


def shown(text: str) -> str:
    """Quote what was typed, for an error; cut a long text."""
    return repr(text) if len(text) <= _SHOWN else f'{text[:_SHOWN]!r}…'


def names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Map fields of the API to the command's own options and arguments.

    An argument has the name of its field, except those of ``_FIELDS``; several of a kind have
    their plural.
    """
    found: dict[str, str] = {}
    for action in parser._actions:
        field = _FIELDS.get(action.dest, action.dest)
        name = action.option_strings[-1] if action.option_strings else str(action.metavar)
        found |= {field.removesuffix('s'): name, field: name}
    return found


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for the images, the hosts and the options of a request."""
    parser.add_argument(
        'images', metavar='<image>', nargs='+', help='images to cache (names or IDs)'
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        '--aggregate',
        metavar='<aggregate>',
        help='cache on all hosts of this aggregate (name, ID or UUID)',
    )
    where.add_argument(
        '--host',
        metavar='<host>',
        dest='hosts',
        action='append',
        help='cache on this host (repeat option for several hosts)',
    )
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        '--priority',
        metavar='<n>',
        type=integer,
        help='priority from -1000 to 1000; requests with a higher one run first',
    )
    add(
        '--max-parallel-hosts',
        metavar='<n>',
        type=integer,
        help='maximum number of hosts that work at the same time',
    )
    add(
        '--max-rate',
        metavar='<rate>',
        type=rate,
        help=f'maximum rate of each host, per second: {_SIZE_HELP}',
    )
    add_window(parser)
    add(
        '--wait-for-down-hosts',
        action='store_true',
        default=None,
        help='wait for hosts that are down, until the deadline, instead of skipping them',
    )
    add(
        '--canary',
        metavar='<n>',
        type=integer,
        help='number of hosts that must succeed before the others start',
    )
    add(
        '--max-failures',
        metavar='<n>',
        type=integer,
        help='cancel the tasks that have not started when more than this number have failed',
    )
    add('--description', metavar='<text>', help='description of the request')


def add_window(parser: argparse.ArgumentParser) -> None:
    """Add the start and the end of the time window of a request."""
    parser.add_argument(
        '--not-before',
        metavar='<time>',
        type=parse_time,
        help=f'start no task before this time: {_TIME_HELP}',
    )
    parser.add_argument(
        '--deadline',
        metavar='<time>',
        type=parse_time,
        help=f'stop at this time and keep partial downloads for a retry: {_TIME_HELP}',
    )


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Add the options that a request can change while it waits or runs, and their ends."""
    add = parser.add_argument
    add('--priority', metavar='<n>', type=integer, help='priority from -1000 to 1000')
    for name, kind, parse, what in (
        ('max-rate', '<rate>', rate, f'maximum rate of each host, per second: {_SIZE_HELP}'),
        (
            'max-parallel-hosts',
            '<n>',
            integer,
            'maximum number of hosts that work at the same time',
        ),
        ('deadline', '<time>', parse_time, f'stop at this time: {_TIME_HELP}'),
    ):
        add(f'--{name}', metavar=kind, type=parse, help=what)
        add(f'--no-{name}', action='store_true', help=f'remove the value of --{name}')


def changes(parsed: argparse.Namespace) -> Json:
    """Build the API's body from the arguments of add_changes; null removes an option.

    :raises osc_lib.exceptions.CommandError: none is given, or both a value and its removal
    """
    said = given({'priority': parsed.priority})
    for option, key, value, is_removed in (
        ('max-rate', 'max_rate_bytes', parsed.max_rate, parsed.no_max_rate),
        (
            'max-parallel-hosts',
            'max_parallel_hosts',
            parsed.max_parallel_hosts,
            parsed.no_max_parallel_hosts,
        ),
        ('deadline', 'deadline', parsed.deadline, parsed.no_deadline),
    ):
        if value is not None and is_removed:
            raise exceptions.CommandError(f'--{option} is not allowed with --no-{option}')
        if value is not None or is_removed:
            said[key] = value
    if not said:
        raise exceptions.CommandError(
            'Nothing to change: give --priority, --max-rate, --max-parallel-hosts or --deadline'
        )
    return said


def add_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--until', metavar='<time>', type=parse_time, help=f'end the pin at this time: {_TIME_HELP}'
    )


def add_cell(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        '--cell', metavar='<cell>', help=f'list only {what} in this cell (name or UUID)'
    )


def add_aggregate(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        '--aggregate',
        metavar='<aggregate>',
        help=f'list only {what} of this aggregate (name, ID or UUID)',
    )


def add_project(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument(
        '--project',
        metavar='<project>',
        help=f'list only {what} of this project (name or ID; for admins)',
    )


def add_sort(parser: argparse.ArgumentParser, keys: Sequence[str]) -> None:
    parser.add_argument(
        '--sort',
        metavar='<key>[:<direction>]',
        type=functools.partial(_sort, keys),
        help='sort by one or several keys, separated by commas, each with a direction, asc '
        f'(default) or desc; keys: {", ".join(keys)}',
    )


def add_paging(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --limit and --marker; without them the whole list is shown."""
    parser.add_argument(
        '--limit', metavar='<n>', type=_count, help=f'maximum number of {what} to list'
    )
    parser.add_argument('--marker', metavar='<marker>', help=f'list only the {what} after this one')


def add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--wait',
        action='store_true',
        help='show progress until the request ends; exit 0 if every image is cached, else 1',
    )
    parser.add_argument(
        '--timeout',
        metavar='<seconds>',
        type=seconds,
        help='with --wait: stop waiting after this time, in seconds or such as 1h30m; the '
        'request continues to run; exit 124',
    )


def subject(parsed: argparse.Namespace, images: list[str]) -> Json:
    """Build the API's request body from the arguments of add_subject; omit those not given."""
    said = {
        'aggregate': parsed.aggregate,
        'hosts': parsed.hosts,
        'images': images,
        'priority': parsed.priority,
        'max_parallel_hosts': parsed.max_parallel_hosts,
        'max_rate_bytes': parsed.max_rate,
        **window(parsed),
        'wait_for_down_hosts': parsed.wait_for_down_hosts,
        'canary': parsed.canary,
        'max_failures': parsed.max_failures,
        'description': parsed.description,
    }
    return given(said)


def window(parsed: argparse.Namespace) -> Json:
    return given({'not_before': parsed.not_before, 'deadline': parsed.deadline})


def given(said: Json) -> Json:
    return {key: value for key, value in said.items() if value is not None}


def _span(text: str) -> datetime.timedelta | None:
    """Parse a duration; None if it is not one."""
    try:
        return durationpy.from_str(text)
    except durationpy.DurationError:
        return None


def _time(text: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{shown(text)} is not a time: expected {_TIME_HELP}'
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _to_iso(when: datetime.datetime | datetime.timedelta, text: str) -> str:
    try:
        if isinstance(when, datetime.timedelta):
            when = datetime.datetime.now(datetime.UTC) + when
        in_utc = when.astimezone(datetime.UTC).replace(tzinfo=None)
    except OverflowError:
        raise argparse.ArgumentTypeError(f'{shown(text)} is outside the years 1 to 9999') from None
    return f'{in_utc.isoformat()}Z'


def _sort(keys: Sequence[str], text: str) -> str:
    """Parse a list of keys to sort by, each with an optional direction."""
    for part in text.split(','):
        key, _, direction = part.partition(':')
        if key not in keys:
            raise argparse.ArgumentTypeError(
                f'{shown(key)} is not a key to sort by: expected one of {", ".join(keys)}'
            )
        if direction not in ('asc', 'desc') and part != key:
            raise argparse.ArgumentTypeError(
                f'{shown(direction)} is not a direction of {key}: expected asc or desc'
            )
    return ','.join(part if ':' in part else f'{part}:asc' for part in text.split(','))


def _count(text: str) -> int:
    found = integer(text)
    if found < 1:
        raise argparse.ArgumentTypeError(f'{shown(text)} must be greater than zero')
    return found
