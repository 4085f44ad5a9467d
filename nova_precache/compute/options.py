# SPDX-License-Identifier: Apache-2.0
"""How a call says that its transfer is to be done, read from the wire and combined.

Keys that are not known, of a newer release, are ignored. A value that cannot be is
refused before anything is done: a limit that somebody counts on must not be lost.
"""

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from nova_precache import exception, model


def read(payload: object) -> model.TransferOptions:
    """Read the options of a call; None and absent keys leave what is the default.

    :raises nova_precache.exception.InvalidInput: a value cannot be; names the field
    """
    if payload is None:
        return model.TransferOptions()
    if not isinstance(payload, Mapping):
        raise exception.InvalidInput('options: not an object')
    return model.TransferOptions(
        max_rate_bytes=_rate(payload.get('max_rate_bytes')),
        deadline_seconds=_seconds(payload.get('deadline_seconds')),
        is_last_attempt=_flag(payload.get('is_last_attempt')),
    )


def _rate(value: Any) -> int | None:
    if value is None or (type(value) is int and 0 < value <= sys.maxsize):
        return value
    raise exception.InvalidInput(
        f'options.max_rate_bytes: {value!r:.40} is not a number from 1 to {sys.maxsize}'
    )


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    # A whole number may be too large to be a float.
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return float(max(-sys.maxsize, min(value, sys.maxsize)))
    raise exception.InvalidInput(f'options.deadline_seconds: {value!r} is not a number')


def _flag(value: Any) -> bool:
    if value is None or type(value) is bool:
        return bool(value)
    raise exception.InvalidInput(f'options.is_last_attempt: {value!r} is neither true nor false')


def rate_for_all(options: Iterable[model.TransferOptions]) -> int | None:
    """Give the rate of a transfer that several want: nobody gets less than was allowed."""
    rates = [each.max_rate_bytes for each in options]
    known = [rate for rate in rates if rate is not None]
    return max(known) if known and len(known) == len(rates) else None


def is_last_for_all(options: Iterable[model.TransferOptions]) -> bool:
    """Tell whether no attempt follows for any of those who want a transfer."""
    return all(each.is_last_attempt for each in options)
