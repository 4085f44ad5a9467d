# SPDX-License-Identifier: Apache-2.0
"""How the options of several calls that want one transfer are combined."""

from collections.abc import Iterable

from nova_precache import model


def rate_for_all(options: Iterable[model.TransferOptions]) -> int | None:
    """Give the rate of a transfer that several want: nobody gets less than was allowed."""
    rates = [each.max_rate_bytes for each in options]
    known = [rate for rate in rates if rate is not None]
    return max(known) if known and len(known) == len(rates) else None


def is_last_for_all(options: Iterable[model.TransferOptions]) -> bool:
    """Tell whether no attempt follows for any of those who want a transfer."""
    return all(each.is_last_attempt for each in options)
