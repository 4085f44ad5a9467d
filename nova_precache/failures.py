# SPDX-License-Identifier: Apache-2.0
"""The kinds of failures, and a summary of many; a kind has no numbers, names or ids.

A reason is a text of this or another release, so its kind is read from the text: a test compares
the table with the errors that are raised.
"""

import collections
import dataclasses
import enum
import functools
import re
from collections.abc import Iterable, Mapping

from nova_precache import model, reasons

MOST_KINDS = 5
_SHAPE_LENGTH = 80


class Kind(enum.StrEnum):
    """The kind of a failure; the value labels a metric."""

    DISK_FULL = 'disk_full'
    HOST_DOWN = 'host_down'
    HOST_DISABLED = 'host_disabled'
    HOST_LEFT = 'host_left'
    HOST_UNMAPPED = 'host_unmapped'
    CELL_OFF = 'cell_off'
    CELL_UNREACHABLE = 'cell_unreachable'
    NO_ANSWER = 'no_answer'
    UNSUPPORTED = 'unsupported'
    UNSAFE = 'unsafe'
    UNBOOTABLE = 'unbootable'
    UNVERIFIED = 'unverified'
    MISMATCH = 'mismatch'
    IMAGE_GONE = 'image_gone'
    UNAUTHORIZED = 'unauthorized'
    GLANCE_UNAVAILABLE = 'glance_unavailable'
    INTERRUPTED = 'interrupted'
    SLOW = 'slow'
    NOT_OURS = 'not_ours'
    CONVERSION = 'conversion'
    STORAGE = 'storage'
    UNRECORDED = 'unrecorded'
    UNEXPECTED = 'unexpected'
    DEADLINE = 'deadline'
    CANCELLED = 'cancelled'
    TOO_MANY_FAILURES = 'too_many_failures'
    CANARY = 'canary'
    OTHER = 'other'


@dataclasses.dataclass(frozen=True)
class _Row:
    kind: Kind
    phrase: str
    pattern: str


# The first match counts: a canary's reason, for example, quotes that of its host.
_TABLE = (
    _Row(Kind.CANARY, 'canary failed', r'^canary host '),
    _Row(Kind.TOO_MANY_FAILURES, 'too many failures', r'max_failures is '),
    _Row(Kind.CANCELLED, 'cancelled', r'request was cancelled'),
    _Row(Kind.DEADLINE, 'deadline passed', r'\bdeadline\b.* passed'),
    _Row(Kind.UNEXPECTED, 'unexpected error', r'^unexpected |^Remote error: '),
    _Row(Kind.UNRECORDED, reasons.UNRECORDED, f'^{reasons.UNRECORDED}$'),
    _Row(Kind.UNSAFE, 'unsafe image', r'unsafe image: '),
    _Row(Kind.NOT_OURS, 'present, but not usable', model.NOT_OURS),
    _Row(Kind.SLOW, 'download too slow', r'\bslower than N'),
    _Row(
        Kind.DISK_FULL,
        'not enough disk space',
        r'\bneeds .* free\b|No space left on device|[Qq]uota exceeded|File too large',
    ),
    _Row(Kind.HOST_DOWN, 'host down', r'^host down\b'),
    _Row(Kind.HOST_DISABLED, 'host disabled', r'^host disabled\b'),
    _Row(Kind.HOST_LEFT, 'host left the aggregate', r'^host left the aggregate'),
    _Row(Kind.HOST_UNMAPPED, 'host not mapped to a cell', r'^host is not mapped'),
    _Row(Kind.CELL_OFF, 'cell disabled', r'^cell .* (is disabled|cannot be reached: )'),
    _Row(
        Kind.CELL_UNREACHABLE,
        'cell unreachable',
        r"^cell .* (is unreachable|has no mapping)|'s database is unreachable|the broker ",
    ),
    _Row(
        Kind.NO_ANSWER,
        'no answer from the host',
        r'no answer from |could not confirm the call|an earlier call got no answer',
    ),
    _Row(
        Kind.UNSUPPORTED,
        'host cannot cache images',
        r'cannot cache images|not cache images in files|supported by the called service'
        r'|above the pinned version|too low for ',
    ),
    _Row(
        Kind.UNAUTHORIZED,
        'token refused',
        r'refuses the (token|credentials|password)|[Tt]oken .*refused',
    ),
    _Row(Kind.UNAUTHORIZED, 'token refused', r'No fresh token'),
    _Row(
        Kind.UNVERIFIED,
        'image without a hash',
        r'Glance has no hash of |hash, which this host does not support',
    ),
    _Row(Kind.UNBOOTABLE, 'image not bootable', r'no instance can boot|has container_format'),
    _Row(Kind.UNBOOTABLE, 'image not bootable', r'is not a root disk|has an invalid .*_id'),
    _Row(
        Kind.MISMATCH,
        'checksum or size mismatch',
        r'received bytes is |has more than N bytes|changed its (size|kernel)',
    ),
    _Row(
        Kind.IMAGE_GONE,
        'image not available',
        r'deleted, deactivated or hidden|could not be found|is not visible to|has no data'
        r'|^Image \S+ is \w+(, not active)?\.?$|is not the id of an image|spells the id of',
    ),
    _Row(Kind.CONVERSION, 'conversion failed', r'qemu-img|is not installed on this host'),
    _Row(
        Kind.GLANCE_UNAVAILABLE,
        'image service unavailable',
        r'Glance (does not answer|answered|returned no)|other than Glance answered'
        r'|[Ii]mage service (does|cannot|has)|[Ii]mage service\b.*Keystone|^Keystone: '
        r'|no endpoint of the image service|cannot be looked up',
    ),
    _Row(
        Kind.INTERRUPTED,
        'download interrupted',
        r'interrupted|cannot be read: |ended after N |another range|Cannot fetch a fresh token'
        r'|Content-Encoding|stalled',
    ),
    _Row(
        Kind.STORAGE,
        'storage error',
        r'[Pp]ermission denied|Read-only file system|Input/output error|Locking |Checking /'
        r'|Listing /|removed during the|not an image|which the image cannot replace|partial file',
    ),
)
_PATTERNS = tuple((row, re.compile(row.pattern)) for row in _TABLE)
_UUID = re.compile(r'\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b')
_NUMBER = re.compile(r'\d+(?:[.:]\d+)*')


def kind(reason: str | None) -> Kind:
    """Return the kind of a failure with this reason."""
    row = _row(_shape(reason or ''))
    return Kind.OTHER if row is None else row.kind


def summary(counts: Mapping[str, int], reasons_of: Iterable[tuple[str, str | None, int]]) -> str:
    """Sum up why the tasks of a request did not succeed, in one line.

    :param counts: all its tasks by status
    :param reasons_of: (status, reason, number of tasks); may lack some tasks, which then have
        other reasons
    """
    by_words: dict[str, collections.Counter[str]] = {}
    left = collections.Counter[str](
        {status: number for status, number in counts.items() if status not in model.TASK_SUCCEEDED}
    )
    for status, reason, number in reasons_of:
        left[status] -= number
        by_words.setdefault(_verb(status), collections.Counter())[_phrase(reason, status)] += number
    for status, number in left.items():
        if number > 0:
            by_words.setdefault(_verb(status), collections.Counter())['other reasons'] += number
    total = sum(counts.values())
    parts = [
        _part(verb, by_words[verb], total)
        for verb in ('failed', 'expired', 'cancelled')
        if verb in by_words
    ]
    return '; '.join(parts)


def _part(verb: str, phrases: collections.Counter[str], total: int) -> str:
    head = f'{phrases.total()} of {total} copies {verb}'
    if len(phrases) == 1 and next(iter(phrases)) == _plain_phrase(verb):
        return head
    named = phrases.most_common(MOST_KINDS)
    texts = [f'{number} × {phrase}' for phrase, number in named]  # noqa: RUF001
    others = phrases.total() - sum(number for _, number in named)
    if others:
        texts.append(f'{others} × other reasons')  # noqa: RUF001
    return f'{head}: {", ".join(texts)}'


def _plain_phrase(verb: str) -> str | None:
    """Return the phrase that only repeats the verb."""
    return {'expired': 'deadline passed', 'cancelled': 'cancelled'}.get(verb)


def _verb(status: str) -> str:
    return status if status in (model.TaskStatus.EXPIRED, model.TaskStatus.CANCELLED) else 'failed'


def _phrase(reason: str | None, status: str) -> str:
    if not reason:
        return status
    shape = _shape(reason)
    row = _row(shape)
    if row is not None:
        return row.phrase
    return shape if len(shape) <= _SHAPE_LENGTH else f'{shape[:_SHAPE_LENGTH].rstrip()} ...'


def _shape(reason: str) -> str:
    """Return a reason without the ids and numbers that differ from host to host."""
    return _NUMBER.sub('N', _UUID.sub('ID', reason))


@functools.lru_cache(1024)
def _row(shape: str) -> _Row | None:
    return next((row for row, pattern in _PATTERNS if pattern.search(shape)), None)
