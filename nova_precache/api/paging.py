# SPDX-License-Identifier: Apache-2.0
"""Lists in pages: how much of them is given, and the link to the rest."""

import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nova_precache import exception, model
from nova_precache.api.call import Call

Item = TypeVar('Item')


def first(call: Call, parameter: str) -> str | None:
    """Give the value of a parameter of the query that is given at most once."""
    values = call.query.get(parameter)
    return values[0] if values else None


def limit(call: Call) -> int:
    """Give how many items the page is to hold, by the query and the configured limit."""
    asked = first(call, 'limit')
    most = call.settings.max_limit
    return most if asked is None else min(int(asked), most)


def page(
    call: Call,
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
    most = limit(call)
    shown = found[:most]
    body: model.Json = {collection: [to_json(item) for item in shown]}
    if len(found) > most:
        href = f'{call.base_url}{path}?{_next_query(call, marker_of(shown[-1]), most)}'
        body[f'{collection}_links'] = [{'rel': 'next', 'href': href}]
    return body


def bad_marker(marker: str | None, error: exception.PrecacheError) -> exception.InvalidInput:
    """Say that the marker names nothing that is in the list."""
    return exception.InvalidInput(
        f'Invalid input for query parameters marker. Value: {marker}. {error}'
    )


def _next_query(call: Call, marker: object, most: int) -> str:
    kept: Mapping[str, str] = {
        name: values[0] for name, values in call.query.items() if name != 'limit'
    }
    return urllib.parse.urlencode({**kept, 'limit': most, 'marker': marker})
