# SPDX-License-Identifier: Apache-2.0
"""Pages of lists: their size, and the link to the next page."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nova_precache import exception, model
from nova_precache.api.request import Request

Item = TypeVar('Item')


def first(req: Request, parameter: str) -> str | None:
    """Return the value of a query parameter that occurs at most once."""
    values = req.query.get(parameter)
    return values[0] if values else None


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


def bad_marker(marker: str | None, error: exception.PrecacheError) -> exception.InvalidInput:
    """Return the error for a marker that is not in the list."""
    return exception.InvalidInput(
        f'Invalid input for query parameters marker. Value: {marker}. {error}'
    )


def _next_query(req: Request, marker: object, most: int) -> str:
    kept: Mapping[str, str] = {
        name: values[0] for name, values in req.query.items() if name != 'limit'
    }
    return urllib.parse.urlencode({**kept, 'limit': most, 'marker': marker})
