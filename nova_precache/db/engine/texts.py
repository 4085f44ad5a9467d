# SPDX-License-Identifier: Apache-2.0
"""Columns for text from outside: cleaned by their type, so that no statement bypasses it."""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from nova_precache import reasons

_IN_ASCII: contextvars.ContextVar[bool] = contextvars.ContextVar('in_ascii', default=False)


@contextlib.contextmanager
def in_ascii() -> Iterator[None]:
    """Write reasons in ASCII, for a database whose encoding lacks some of their characters."""
    token = _IN_ASCII.set(True)
    try:
        yield
    finally:
        _IN_ASCII.reset(token)


class Reason(sa.TypeDecorator[str]):
    """A reason, cleaned and shortened."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else _clean(value)


class Reasons(sa.TypeDecorator[dict[str, str]]):
    """A JSON object whose values are reasons."""

    impl = sa.JSON
    cache_ok = True

    def process_bind_param(
        self, value: Mapping[str, str] | None, dialect: sa.Dialect
    ) -> dict[str, Any] | None:
        return None if value is None else {key: _clean(each) for key, each in value.items()}


def _clean(text: str) -> str:
    cleaned = reasons.clean(text)
    return reasons.to_ascii(cleaned) if _IN_ASCII.get() else cleaned
