# SPDX-License-Identifier: Apache-2.0
"""The rate at which a host is expected to download: one rule for estimates and for ETAs."""

import statistics
from collections.abc import Collection


def typical(rates: Collection[float]) -> float | None:
    """Return the rate to expect of a host without a measured one; None if no rate is known."""
    return statistics.median(rates) if rates else None


def expected(measured: float | None, others: float | None, limit: int | None) -> float | None:
    """Return the bytes per second of a host: measured there, else of others, up to the limit."""
    rate = others if measured is None else measured
    return rate if rate is None or limit is None else min(rate, limit)
