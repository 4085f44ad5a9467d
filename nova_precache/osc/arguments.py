# SPDX-License-Identifier: Apache-2.0
"""Command line arguments: sizes, rates, times, and options that commands share."""

import argparse
import datetime

import durationpy
from oslo_utils import strutils

from nova_precache.osc.client import Json

_TIME_HELP = 'ISO 8601 (default zone: UTC) or an offset from now, such as +2h or +1h30m'
_SIZE_HELP = 'plain bytes or a binary unit, such as 50M or 1G'


def size(text: str) -> int:
    """Parse a number of bytes: 1048576, 1M, 1MiB."""
    try:
        number = text if text.endswith('B') else f'{text}B'
        found = int(strutils.string_to_bytes(number, unit_system='IEC', return_int=True))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size: expected {_SIZE_HELP}') from None
    if found < 0:
        raise argparse.ArgumentTypeError(f'{text!r} must not be negative')
    return found


def rate(text: str) -> int:
    """Parse a number of bytes per second: 50M, 50M/s."""
    found = size(text.removesuffix('/s'))
    if found == 0:
        raise argparse.ArgumentTypeError(f'{text!r} must be greater than zero')
    return found


def parse_time(text: str) -> str:
    """Parse a time, or a duration from now, and return it as ISO 8601 in UTC."""
    span = _span(text)
    return _to_iso(span if span is not None else _time(text), text)


def past_moment(text: str) -> str:
    """Parse a time, or a duration before now, and return it as ISO 8601 in UTC."""
    span = _span(text.removeprefix('-'))
    return _to_iso(-span if span is not None else _time(text), text)


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
        type=int,
        help='priority from -1000 to 1000; requests with a higher one run first',
    )
    add(
        '--max-parallel-hosts',
        metavar='<n>',
        type=int,
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
        type=int,
        help='number of hosts that must succeed before the others start',
    )
    add(
        '--max-failures',
        metavar='<n>',
        type=int,
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


def add_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--until', metavar='<time>', type=parse_time, help=f'end the pin at this time: {_TIME_HELP}'
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
        raise argparse.ArgumentTypeError(f'{text!r} is not a time: expected {_TIME_HELP}') from None
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _to_iso(when: datetime.datetime | datetime.timedelta, text: str) -> str:
    try:
        if isinstance(when, datetime.timedelta):
            when = datetime.datetime.now(datetime.UTC) + when
        in_utc = when.astimezone(datetime.UTC).replace(tzinfo=None)
    except OverflowError:
        raise argparse.ArgumentTypeError(f'{text!r} is outside the years 1 to 9999') from None
    return f'{in_utc.isoformat()}Z'


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)
