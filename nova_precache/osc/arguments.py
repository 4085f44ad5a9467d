# SPDX-License-Identifier: Apache-2.0
"""Command line arguments: sizes, rates, times, and options that commands share."""

import argparse
import datetime

import durationpy
from oslo_utils import strutils

from nova_precache.osc.client import Json

_TIME_HELP = 'ISO 8601 (UTC unless it names a zone), or from now on, such as +2h or +1h30m'
_SIZE_HELP = 'such as 50M or 1G (powers of 1024), or plain bytes'


def size(text: str) -> int:
    """Parse a number of bytes: 1048576, 1M, 1MiB."""
    try:
        number = text if text.endswith('B') else f'{text}B'
        found = int(strutils.string_to_bytes(number, unit_system='IEC', return_int=True))
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size; give one {_SIZE_HELP}') from None
    if found < 0:
        raise argparse.ArgumentTypeError(f'{text!r} is less than nothing')
    return found


def rate(text: str) -> int:
    """Parse a number of bytes per second: 50M, 50M/s."""
    found = size(text.removesuffix('/s'))
    if found == 0:
        raise argparse.ArgumentTypeError(f'at {text!r} nothing would ever come')
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
    parser.add_argument('images', metavar='<image>', nargs='+', help='images (names or IDs)')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--aggregate', metavar='<aggregate>', help='on its hosts (name, ID or UUID)')
    where.add_argument(
        '--host',
        metavar='<host>',
        dest='hosts',
        action='append',
        help='on this host (repeat for more)',
    )
    _add_options(parser)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add('--priority', metavar='<n>', type=int, help='-1000 to 1000; higher goes first')
    add('--max-parallel-hosts', metavar='<n>', type=int, help='hosts that work at a time')
    add('--max-rate', metavar='<rate>', type=rate, help=f'of each host, a second: {_SIZE_HELP}')
    add_window(parser)
    add(
        '--wait-for-down-hosts',
        action='store_true',
        default=None,
        help='hosts that are down have until the deadline to come back',
    )
    add('--canary', metavar='<n>', type=int, help='first so many hosts must succeed')
    add(
        '--max-failures',
        metavar='<n>',
        type=int,
        help='when more tasks fail, the rest is not begun',
    )
    add('--description', metavar='<text>', help='what it is for')


def add_window(parser: argparse.ArgumentParser) -> None:
    """Add the start and the end of the time window of a request."""
    parser.add_argument(
        '--not-before',
        metavar='<time>',
        type=parse_time,
        help=f'start no task earlier: {_TIME_HELP}',
    )
    parser.add_argument(
        '--deadline',
        metavar='<time>',
        type=parse_time,
        help=f'stop then, keep what came: {_TIME_HELP}',
    )


def add_until(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--until', metavar='<time>', type=parse_time, help=f'when it ends by itself: {_TIME_HELP}'
    )


def add_paging(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --limit and --marker; without them the whole list is shown."""
    parser.add_argument('--limit', metavar='<n>', type=_count, help=f'no more {what} than that')
    parser.add_argument('--marker', metavar='<marker>', help='begin after this one')


def add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--wait',
        action='store_true',
        help='show how it goes on until it is over; end with 0 if every image is cached, else 1',
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
        raise argparse.ArgumentTypeError(f'{text!r} is not a time; give one {_TIME_HELP}') from None
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _to_iso(when: datetime.datetime | datetime.timedelta, text: str) -> str:
    try:
        if isinstance(when, datetime.timedelta):
            when = datetime.datetime.now(datetime.UTC) + when
        in_utc = when.astimezone(datetime.UTC).replace(tzinfo=None)
    except OverflowError:
        raise argparse.ArgumentTypeError(f'{text!r} is not in any calendar') from None
    return f'{in_utc.isoformat()}Z'


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of at least 1')
    return int(text)
