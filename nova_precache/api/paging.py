# SPDX-License-Identifier: Apache-2.0
"""Pages of lists: their order, their size, and the link to the next page."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nova_precache import exception, model
from nova_precache.api import validation
from nova_precache.api.request import Request
from nova_precache.db import pages

Item = TypeVar('Item')
_DIRECTIONS = ('asc', 'desc')


def first(req: Request, parameter: str) -> str | None:
    """Return the value of a query parameter that occurs at most once."""
    values = req.query.get(parameter)
    return values[0] if values else None


def read(
    req: Request,
    schema: model.Json,
    sort_keys: Sequence[str],
    default: Sequence[model.SortKey] = (),
) -> pages.Page:
    """Check a query, and read its page, with one item more to find out whether more follow.

    :param sort_keys: of the parameter ``sort``
    :raises nova_precache.exception.InvalidInput: names the invalid parameter
    """
    asked = _sort(req, sort_keys)  # first: its errors list the keys
    validation.check_query(req.query, schema)
    return pages.Page(asked or default, limit(req) + 1, first(req, 'marker'))


def _sort(req: Request, keys: Sequence[str]) -> Sequence[model.SortKey]:
    text = first(req, 'sort')
    if text is None:
        return ()
    parts = [each.partition(':') for each in text.split(',')]
    found = [model.SortKey(key, direction == 'desc') for key, _, direction in parts]
    for (key, colon, direction), later in zip(parts, range(1, len(parts) + 1), strict=True):
        if key not in keys:
            raise _bad_sort(text, f'The keys are {", ".join(keys)}.')
        if colon and direction not in _DIRECTIONS:
            raise _bad_sort(text, f'The directions are {" and ".join(_DIRECTIONS)}.')
        if key in (other for other, _, _ in parts[later:]):
            raise _bad_sort(text, f'The key {key} is listed twice.')
    return found


def limit(req: Request) -> int:
    """Return the size of the page, by the query and the configured limit."""
    asked = first(req, 'limit')
    most = req.settings.max_limit
    return most if asked is None else min(int(asked), most)


def page(
    req: Request,
    path: str,
    collection: str,
    found: Sequence[Item],
    to_json: Callable[[Item], model.Json],
    marker_of: Callable[[Item], object],
) -> model.Json:
    """Build the body of a page, with a link to the next one.

    :param path: of the list
    :param found: up to one item more than the limit
    """
    most = limit(req)
    shown = found[:most]
    body: model.Json = {collection: [to_json(item) for item in shown]}
    if len(found) > most:
        href = f'{req.base_url}{path}?{_next_query(req, marker_of(shown[-1]), most)}'
        body[f'{collection}_links'] = [{'rel': 'next', 'href': href}]
    return body


def _bad_sort(text: str, why: str) -> exception.InvalidInput:
    return exception.InvalidField('sort', text, why, 'query parameters')


def _next_query(req: Request, marker: object, most: int) -> str:
    kept: Mapping[str, str] = {
        name: values[0] for name, values in req.query.items() if name != 'limit'
    }
    return urllib.parse.urlencode({**kept, 'limit': most, 'marker': marker})
