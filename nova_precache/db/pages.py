# SPDX-License-Identifier: Apache-2.0
"""Pages of sorted lists: each continues after the values of the last row of the page before.

Rows that are added or deleted in between therefore neither hide nor repeat others. A null is
greater than any value, on every database. ``paginate_query`` of oslo.db leaves out rows after a
marker with a null.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import orm

from nova_precache import exception, model

S = TypeVar('S', bound=sa.Select[*tuple[Any, ...]])
Column = orm.InstrumentedAttribute[Any]


@dataclasses.dataclass(frozen=True)
class Listing:
    """A kind of rows that can be listed.

    :ivar keys: sort keys
    :ivar unique: decides between rows with equal keys
    :ivar marker: the column by which a client names the last row of a page
    """

    keys: Mapping[str, Column]
    unique: Column
    marker: Column


@dataclasses.dataclass(frozen=True)
class Page:
    """Which rows of a list to return: at most ``limit`` after ``marker``, in the order of ``sort``.

    :ivar sort: by default, ascending by the unique column
    """

    sort: Sequence[model.SortKey] = ()
    limit: int | None = None
    marker: str | int | None = None


def select(
    session: orm.Session,
    query: S,
    listing: Listing,
    page: Page,
    visible: sa.ColumnElement[bool] | None = None,
) -> S:
    """Add the order and the limits of a page to a query.

    :param visible: the rows that a marker may name
    :raises nova_precache.exception.InvalidMarker: there is no such row
    """
    last = last_values(session, listing, page, visible)
    return ordered(query, listing, page.sort, last).limit(page.limit)


def last_values(
    session: orm.Session,
    listing: Listing,
    page: Page,
    visible: sa.ColumnElement[bool] | None = None,
) -> Sequence[Any] | None:
    """Return the values of the last row of the page before, in the order; None: the first page.

    :raises nova_precache.exception.InvalidMarker: there is no such row
    """
    if page.marker is None:
        return None
    columns = [column for column, _ in _order(listing, page.sort)]
    if columns == [listing.marker]:
        return [page.marker]
    query = sa.select(*columns).where(listing.marker == page.marker)
    row = session.execute(query if visible is None else query.where(visible)).first()
    if row is None:
        raise exception.InvalidMarker(page.marker)
    return row


def ordered(
    query: S, listing: Listing, sort: Sequence[model.SortKey], last: Sequence[Any] | None
) -> S:
    """Sort a query, and select the rows after the last one of the page before.

    :param last: its values, or parameters for them; None for the first page
    """
    order = _order(listing, sort)
    query = query.order_by(*(each for by in order for each in _clauses(*by)))
    return query if last is None else query.where(_after(order, last))


def _order(listing: Listing, sort: Sequence[model.SortKey]) -> list[tuple[Column, bool]]:
    order: list[tuple[Column, bool]] = []
    for key in sort:
        order.append((listing.keys[key.name], key.is_descending))
        if listing.keys[key.name] is listing.unique:
            return order
    return [*order, (listing.unique, bool(sort) and sort[-1].is_descending)]


def _clauses(column: Column, is_descending: bool) -> list[sa.ColumnElement[Any]]:
    by = [column.is_(None), column] if column.expression.nullable else [column]
    return [each.desc() if is_descending else each.asc() for each in by]


def _after(order: Sequence[tuple[Column, bool]], last: Sequence[Any]) -> sa.ColumnElement[bool]:
    beyond, same = [], list[sa.ColumnElement[bool]]()
    for (column, is_descending), value in zip(order, last, strict=True):
        beyond.append(sa.and_(*same, _further(column, is_descending, value)))
        same.append(column == value)
    return sa.or_(*beyond)


def _further(column: Column, is_descending: bool, value: Any) -> sa.ColumnElement[bool]:
    if value is None:
        return column.is_not(None) if is_descending else sa.false()
    beyond: sa.ColumnElement[bool] = column < value if is_descending else column > value
    comes_null = column.expression.nullable and not is_descending
    return sa.or_(beyond, column.is_(None)) if comes_null else beyond
