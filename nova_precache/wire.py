# SPDX-License-Identifier: Apache-2.0
"""Parse messages of other processes into our nouns; check type, range and length of each field.

A message comes from a broker, where a compromised host can publish, or from another release. A
bad value that is not refused here would fail further in and affect others: the bulk write of
all hosts, the sum that every reader needs. Unknown keys are ignored. The limits are those of
the columns.
"""

import datetime
import json
import logging
import math
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nova_precache import exception, model

T = TypeVar('T')

HOST_MAX = 255
ID_MAX = 36
STATUS_MAX = 32
BOOT_ID_MAX = VERSION_MAX = STORE_ID_MAX = 64
DRIVER_MAX = 255
REQUEST_ID_MAX = USER_MAX = 255
FILE_NAME_MAX = 255
ENDPOINT_MAX = 1024
TOKEN_MAX = 65_536
COUNT_MAX = 2**31 - 1
NUMBER_MAX = BYTES_MAX = 2**63 - 1
# For one image: the sum over the tasks of a request fits an integer of every database.
IMAGE_BYTES_MAX = 2**45
ROLES_MAX = 100
# For one message, and for the stored files of one host.
FILES_MAX = 10_000
CAPABILITIES_MAX = 256
# So that hundreds of agents fit in one statement of a database that limits its bytes.
CAPABILITIES_CHARACTERS_MAX = 8192
# Images that are pinned on the hosts of one cache.
KEPT_MAX = 10_000
# Jobs of one host that are at work at once.
TRANSFERS_MAX = 10_000
COMPANIONS_MAX = 2  # a kernel and a ramdisk
ASKED_BY_MAX = 255
_CAPABILITIES_DEPTH = 4
_TIME_MAX = 64
_SHOWN_MAX = 60
_LINE_MAX = 1000

# The host names that Nova's API accepts; used with fullmatch, since $ would accept a newline.
_HOST = re.compile(f'[a-zA-Z0-9._-]{{1,{HOST_MAX}}}')
_ID = re.compile(f'[a-zA-Z0-9_-]{{1,{ID_MAX}}}')
_WORD = re.compile(f'[a-zA-Z0-9_-]{{1,{STATUS_MAX}}}')
_FIRST_TIME = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_LAST_TIME = datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC)
# By name, since a newer release may have more statuses.
_OVER = frozenset(model.TaskStatus) - model.TASK_IN_FLIGHT
_RETRIES = frozenset(model.Retry)


def host(value: object, field: str = 'host') -> str:
    """Read the name of a host.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, str) and _HOST.fullmatch(value):
        return value
    raise _invalid(field, value, f'1 to {HOST_MAX} letters, digits, dots, hyphens and underscores')


def identifier(value: object, field: str) -> str:
    """Read the id of a job or an image.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise _invalid(field, value, f'1 to {ID_MAX} letters, digits, hyphens and underscores')


def text(value: object, field: str, most: int, least: int = 0) -> str:
    """Read a text that can be printed on one line and stored in any database.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, str) and least <= len(value) <= most and value.isprintable():
        return value
    raise _invalid(field, value, f'{least} to {most} printable characters')


def whole(value: object, field: str, most: int = NUMBER_MAX) -> int:
    """Read a non-negative integer.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if type(value) is int and 0 <= value <= most:
        return value
    raise _invalid(field, value, f'a whole number from 0 to {most}')


def flag(value: object, field: str) -> bool:
    """Read a boolean.

    :raises nova_precache.exception.InvalidInput: it is neither; names the field
    """
    if type(value) is bool:
        return value
    raise _invalid(field, value, 'true or false')


def mapping(value: object, field: str) -> Mapping[str, Any]:
    """Read an object.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, dict):
        return value
    raise _invalid(field, value, 'an object')


def items(value: object, field: str, most: int) -> Sequence[Any]:
    """Read a list of at most ``most`` items.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, list | tuple):
        if len(value) <= most:
            return value
        raise exception.InvalidInput(f'{field}: {len(value)} items, at most {most} may be sent')
    raise _invalid(field, value, 'a list')


def maybe(read: Callable[..., T], value: object, field: str, *limits: int) -> T | None:
    """Read a value that may be null."""
    return None if value is None else read(value, field, *limits)


def secret(value: object, field: str) -> str:
    """Read a token; never show it in an error.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if (
        isinstance(value, str)
        and len(value) <= TOKEN_MAX
        and value.isascii()
        and value.isprintable()
    ):
        return value
    raise exception.InvalidInput(f'{field}: not a token')


def time(value: object, field: str) -> datetime.datetime:
    """Read a time with an offset; return it in UTC without one, as times are stored.

    :raises nova_precache.exception.InvalidInput: it is malformed; names the field
    """
    if isinstance(value, str) and len(value) <= _TIME_MAX:
        try:
            read = datetime.datetime.fromisoformat(value)
            if read.tzinfo is not None and _FIRST_TIME <= read <= _LAST_TIME:
                return read.astimezone(datetime.UTC).replace(tzinfo=None)
        except (ValueError, OverflowError):
            pass
    raise _invalid(field, value, 'a time with an offset, from 1970 to 9999')


def agent(state: object, cell_uuid: str) -> model.Agent:
    """Read the report of an agent to the conductors of its cell.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(state, 'state').get
    return model.Agent(
        host=host(get('host'), 'state.host'),
        agent_id=text(get('agent_id'), 'state.agent_id', ID_MAX, 1),
        cell_uuid=cell_uuid,
        boot_id=maybe(text, get('boot_id'), 'state.boot_id', BOOT_ID_MAX),
        version=maybe(text, get('version'), 'state.version', VERSION_MAX),
        driver=maybe(text, get('driver'), 'state.driver', DRIVER_MAX),
        store_id=maybe(text, get('store_id'), 'state.store_id', STORE_ID_MAX),
        cache_bytes=maybe(whole, get('cache_bytes'), 'state.cache_bytes', BYTES_MAX),
        free_bytes=maybe(whole, get('free_bytes'), 'state.free_bytes', BYTES_MAX),
        capabilities=_capabilities(get('capabilities', {})),
    )


def sending_time(value: object, field: str) -> datetime.datetime:
    """Read when a message was sent: a time of the database, and the seconds since then.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(value, field).get
    seconds = _non_negative(get('seconds'), f'{field}.seconds')
    now = time(get('now'), f'{field}.now')
    try:
        return now + datetime.timedelta(seconds=seconds)
    except OverflowError:
        raise _invalid(f'{field}.seconds', seconds, 'a number of seconds before 9999') from None


def report_answer(value: object) -> model.ReportAnswer:
    """Read a conductor's answer to a report.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(value, 'the answer').get
    return model.ReportAnswer(
        time(get('now'), 'now'),
        _non_negative(get('next_seconds'), 'next_seconds'),
        flag(get('is_taken', True), 'is_taken'),
    )


def progress(value: object) -> model.Progress:
    """Read the progress of a job; accept an unknown status of a newer release.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(value, 'progress').get
    status = _word(get('status'), 'progress.status')
    if status in _OVER:
        raise _invalid('progress.status', status, 'a status of unfinished work')
    return model.Progress(
        status,
        whole(get('bytes_done'), 'progress.bytes_done', IMAGE_BYTES_MAX),
        maybe(whole, get('bytes_total'), 'progress.bytes_total', IMAGE_BYTES_MAX),
        maybe(whole, get('rate_bytes'), 'progress.rate_bytes', IMAGE_BYTES_MAX),
    )


def cached_image(host_name: str, value: object) -> model.CachedImage:
    """Read a file in the cache of a host.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(value, 'images').get
    name = get('name')
    if not isinstance(name, str):
        raise _invalid('images.name', name, 'a name')
    return model.CachedImage(
        host=host_name,
        name=name,  # any name of a file is accepted
        image_id=None,
        size_bytes=whole(get('size_bytes'), 'images.size_bytes', BYTES_MAX),
        disk_bytes=whole(get('disk_bytes'), 'images.disk_bytes', BYTES_MAX),
        touched_at=time(get('touched_at'), 'images.touched_at'),
        used_by=maybe(whole, get('used_by'), 'images.used_by', COUNT_MAX),
    )


def image_outcome(answer: object) -> model.ImageOutcome:
    """Read the outcome of an attempt; accept any text as its reason, which is cleaned later.

    A retry that only a newer release knows is an ordinary one, after a delay.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    payload = mapping(answer, 'outcome')
    status = _word(payload.get('status'), 'outcome.status')
    if status in model.TASK_IN_FLIGHT:
        raise _invalid('outcome.status', status, 'a status of finished work')
    reason, retry = payload.get('reason'), payload.get('retry', model.Retry.NEVER)
    if not isinstance(reason, str | None):
        raise _invalid('outcome.reason', reason, 'a text')
    if _word(retry, 'outcome.retry') not in _RETRIES:
        payload = {**payload, 'retry': model.Retry.BACKOFF}
    whole(payload.get('bytes_done', 0), 'outcome.bytes_done', IMAGE_BYTES_MAX)
    maybe(whole, payload.get('bytes_total'), 'outcome.bytes_total', IMAGE_BYTES_MAX)
    maybe(whole, payload.get('gained_bytes'), 'outcome.gained_bytes', IMAGE_BYTES_MAX)
    flag(payload.get('at_once', False), 'outcome.at_once')
    maybe(_non_negative, payload.get('seconds'), 'outcome.seconds')
    return model.ImageOutcome.from_wire(payload)


def image_removal(answer: object) -> model.ImageRemoval:
    """Read the result of the removal of an image; accept any text as its reason.

    :raises nova_precache.exception.InvalidInput: a field is out of range; names it
    """
    get = mapping(answer, 'removal').get
    reason = get('reason')
    if not isinstance(reason, str | None):
        raise _invalid('removal.reason', reason, 'a text')
    return model.ImageRemoval(
        status=_word(get('status'), 'removal.status'),
        reason=reason,
        freed_bytes=whole(get('freed_bytes', 0), 'removal.freed_bytes', BYTES_MAX),
        names=tuple(
            text(each, 'removal.names', FILE_NAME_MAX)
            for each in items(get('names', []), 'removal.names', FILES_MAX)
        ),
    )


def transfer_options(value: object) -> model.TransferOptions:
    """Read the options of a call; None and absent keys mean the defaults.

    An invalid value is refused, since a limit must not be lost.

    :raises nova_precache.exception.InvalidInput: a value is out of range; names the field
    """
    if value is None:
        return model.TransferOptions()
    get = mapping(value, 'options').get
    return model.TransferOptions(
        max_rate_bytes=maybe(_rate, get('max_rate_bytes'), 'options.max_rate_bytes'),
        deadline_seconds=maybe(_seconds, get('deadline_seconds'), 'options.deadline_seconds'),
        is_last_attempt=maybe(flag, get('is_last_attempt'), 'options.is_last_attempt') or False,
    )


def option_change(value: object) -> model.OptionChange:
    """Read a change of the options of a running transfer.

    :raises nova_precache.exception.InvalidInput: a value is out of range; names the field
    """
    get = mapping(value, 'change').get
    return model.OptionChange(
        whole(get('number'), 'change.number', COUNT_MAX),
        maybe(_rate, get('max_rate_bytes'), 'change.max_rate_bytes'),
        maybe(_seconds, get('deadline_seconds'), 'change.deadline_seconds'),
    )


def companions(value: object, field: str) -> tuple[model.Companion, ...]:
    """Read the companions of an image.

    :raises nova_precache.exception.InvalidInput: a value is out of range; names the field
    """
    found = [mapping(each, field).get for each in items(value, field, COMPANIONS_MAX)]
    return tuple(
        model.Companion(
            identifier(get('id'), f'{field}.id'),
            maybe(whole, get('size_bytes'), f'{field}.size_bytes', IMAGE_BYTES_MAX),
        )
        for get in found
    )


def _word(value: object, field: str) -> str:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    raise _invalid(field, value, f'a word of at most {STATUS_MAX} characters')


def _rate(value: object, field: str) -> int:
    if type(value) is int and 0 < value <= sys.maxsize:
        return value
    raise _invalid(field, value, f'a number from 1 to {sys.maxsize}')


def _seconds(value: object, field: str) -> float:
    # An integer may be too large for a float.
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(max(-sys.maxsize, min(value, sys.maxsize)))
    raise _invalid(field, value, 'a number')


def _non_negative(value: object, field: str) -> float:
    seconds = _seconds(value, field)
    if seconds < 0:
        raise _invalid(field, value, 'a number of at least 0')
    return seconds


def _capabilities(value: object) -> Mapping[str, Any]:
    """Read an object with a limited number of values, all of types of JSON and any database."""
    known = mapping(value, 'state.capabilities')
    left = CAPABILITIES_MAX - _count(known, _CAPABILITIES_DEPTH, CAPABILITIES_MAX)
    if left < 0:
        raise exception.InvalidInput(
            f'state.capabilities: more than {CAPABILITIES_MAX} values, or nested more than '
            f'{_CAPABILITIES_DEPTH} deep'
        )
    size = len(json.dumps(known))
    if size > CAPABILITIES_CHARACTERS_MAX:
        raise exception.InvalidInput(
            f'state.capabilities: {size} characters of JSON, at most '
            f'{CAPABILITIES_CHARACTERS_MAX} may be sent'
        )
    reserved, raw = 'reserved_disk_bytes', 'force_raw_images'
    maybe(whole, known.get(reserved), f'state.capabilities.{reserved}', BYTES_MAX)
    maybe(flag, known.get(raw), f'state.capabilities.{raw}')
    return known


def _count(value: object, depth: int, most: int) -> int:
    """Count a value and those in it; stop soon after ``most``."""
    if isinstance(value, dict | list | tuple):
        if depth == 0 or len(value) > most:
            return most + 1
        inner = value
        if isinstance(value, dict):
            for key in value:
                text(key, 'state.capabilities', HOST_MAX)
            inner = list(value.values())
        count = 1
        for each in inner:
            count += _count(each, depth - 1, most - count)
            if count > most:
                break
        return count
    if isinstance(value, str):
        text(value, 'state.capabilities', HOST_MAX)
    elif type(value) is int:
        whole(abs(value), 'state.capabilities')
    elif not (
        value is None or type(value) is bool or (type(value) is float and math.isfinite(value))
    ):
        raise _invalid('state.capabilities', value, 'a JSON value')
    return 1


def shown(value: object) -> str:
    """Format a foreign value: short, on one line, and without control characters."""
    if isinstance(value, str):
        return repr(value[:_SHOWN_MAX]) + ('...' if len(value) > _SHOWN_MAX else '')
    if type(value) is int and value.bit_length() > 64:
        return f'a number of {value.bit_length()} bits'
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    return f'<{type(value).__name__}>'


def line(value: object) -> str:
    """Return the first line of a foreign text, short and printable."""
    if not isinstance(value, str):
        return shown(value)
    return printable(value[:_LINE_MAX].strip().partition('\n')[0])


def printable(text: str) -> str:
    """Return a text with its unprintable characters escaped."""
    if text.isprintable():
        return text
    return ''.join(
        each if each.isprintable() else each.encode('unicode_escape').decode() for each in text
    )


def _invalid(field: str, value: object, wanted: str) -> exception.InvalidInput:
    return exception.InvalidInput(f'{field}: {shown(value)} is not {wanted}')


class Senders:
    """Logs the senders of refused messages, each once per kind of message.

    :param log: the log to use
    :param most: how many entries are remembered; after these, further senders are not logged
    """

    def __init__(self, log: logging.Logger, most: int = 1000) -> None:
        self._log = log
        self._most = most
        self._lock = threading.Lock()
        self._named: set[tuple[str, str]] = set()

    def is_first(self, what: str, sender: str) -> bool:
        """Claim the one log line of a sender for a kind of message; False if already used."""
        with self._lock:
            if (what, sender) in self._named or len(self._named) >= self._most:
                return False
            self._named.add((what, sender))
            is_last = len(self._named) == self._most
        if is_last:
            self._log.warning('Further senders of refused messages are not logged')
        return True

    def refused(self, what: str, sender: str, why: object) -> None:
        """Log a refused message.

        :param what: the message, in words
        :param sender: printable
        """
        if self.is_first(what, sender):
            self._log.warning('Refused %s from %s: %s', what, sender, why)
