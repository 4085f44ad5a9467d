# SPDX-License-Identifier: Apache-2.0
"""Combines the options of all calls that share a transfer."""

from collections.abc import Iterable

from nova_precache import model


def rate_for_all(options: Iterable[model.TransferOptions]) -> int | None:
    """Return the rate limit of a shared transfer: the highest one, None if any has no limit."""
    rates = [each.max_rate_bytes for each in options]
    known = [rate for rate in rates if rate is not None]
    return max(known) if known and len(known) == len(rates) else None


def is_last_for_all(options: Iterable[model.TransferOptions]) -> bool:
    """Return whether this is the last attempt of every call that shares the transfer."""
    return all(each.is_last_attempt for each in options)
