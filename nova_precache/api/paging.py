# SPDX-License-Identifier: Apache-2.0
"""Lists in pages: how much of them is given, and the link to the rest."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nova_precache import exception, model
from nova_precache.api.request import Request

Item = TypeVar('Item')


def first(req: Request, parameter: str) -> str | None:
    """Give the value of a parameter of the query that is given at most once."""
    values = req.query.get(parameter)
    return values[0] if values else None


def limit(req: Request) -> int:
    """Give how many items the page is to hold, by the query and the configured limit."""
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
    """Make the body of a page, with a link to the next one.

    :param path: where the list is
    :param found: one item more than the limit, where there is one
    """
    most = limit(req)
    shown = found[:most]
    body: model.Json = {collection: [to_json(item) for item in shown]}
    if len(found) > most:
        href = f'{req.base_url}{path}?{_next_query(req, marker_of(shown[-1]), most)}'
        body[f'{collection}_links'] = [{'rel': 'next', 'href': href}]
    return body


def bad_marker(marker: str | None, error: exception.PrecacheError) -> exception.InvalidInput:
    """Say that the marker names nothing that is in the list."""
    return exception.InvalidInput(
        f'Invalid input for query parameters marker. Value: {marker}. {error}'
    )


def _next_query(req: Request, marker: object, most: int) -> str:
    kept: Mapping[str, str] = {
        name: values[0] for name, values in req.query.items() if name != 'limit'
    }
    return urllib.parse.urlencode({**kept, 'limit': most, 'marker': marker})
