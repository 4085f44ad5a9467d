# SPDX-License-Identifier: Apache-2.0
"""Renders the sections of the API reference from the table of operations and its schemas."""

import http
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import webob.util

from nova_precache.api import microversion, openapi, routes
from nova_precache.api.operations import ANY_METHOD, Operation

SAMPLES = pathlib.Path(__file__).parents[1] / 'doc' / 'api-ref' / 'samples'

_SHOWN_FORMATS = {'uuid', 'date-time', 'uri'}


class Place(NamedTuple):
    """An operation, and where it is served."""

    method: str
    path: str
    operation: Operation


def places() -> Mapping[str, Place]:
    """Return the operations by name, each with the path that has no project in it."""
    return {
        operation.name: Place(
            'GET' if method == ANY_METHOD else method,
            re.sub(r'\{(\w+):[^{}]*\}', r'{\1}', path),
            operation,
        )
        for table in (routes.VERSION_DOCUMENTS, routes.CHOICES, routes.RESOURCES)
        for path, methods in table.items()
        if '{project_id' not in path
        for method, operation in methods.items()
        if method != 'HEAD'
    }


def section(
    name: str, action: str | None, sample: str | None, prose: Sequence[str]
) -> Iterator[str]:
    """Render the section of an operation, or of one of its actions, as reStructuredText.

    :param sample: the start of the names of the files with its samples
    """
    method, path, operation = places()[name]
    chosen = operation.actions[action] if action is not None else None
    title = operation.summary if chosen is None else f'{chosen.summary} ({action})'
    yield from (title, '=' * len(title), '', f'.. rest_method:: {method} {path}', '', *prose, '')
    if operation.since is not None:
        yield from (f'Since microversion {operation.since}.', '')
    if operation.is_public:
        yield from ('No token is needed.', '')
    reasons = dict(openapi.reasons(operation)) | (dict(chosen.errors) if chosen else {})
    if microversion.api_for_path(path) is microversion.ROOT:
        del reasons[406]
    if method == 'GET' and microversion.api_for_path(path) is microversion.PRECACHE:
        reasons[http.HTTPStatus.NOT_MODIFIED] = openapi.NOT_MODIFIED
    yield from _table('15 85', ('Status', 'Reason'), _statuses(operation.status, reasons))
    body = operation.body if chosen is None else chosen.body
    asked = [
        *_parameters('path', operation.path),
        *_parameters('query', _values(operation.query), required=()),
        *_fields(body or {}),
    ]
    yield from _part('Request', asked, sample)
    headers = {header: _header(header) for header in operation.headers}
    yield from _part(
        'Response', [*_parameters('header', headers), *_fields(operation.answer or {})], sample
    )


def _statuses(success: int, reasons: Mapping[int, str]) -> Iterator[Sequence[str]]:
    # The phrases of the answers; those of http.HTTPStatus differ between Pythons.
    phrases = webob.util.status_reasons
    yield f'{success} - {phrases[success]}', f'{http.HTTPStatus(success).description}.'
    for status in sorted(reasons):
        yield f'{status} - {phrases[status]}', reasons[status]


def _part(title: str, rows: Sequence[Sequence[str]], sample: str | None) -> Iterator[str]:
    """Render one half of a section: the table and the sample, if there are any."""
    yield from (title, '-' * len(title), '')
    if rows:
        yield from _table('20 10 15 55', ('Name', 'In', 'Type', 'Description'), rows)
    else:
        yield from ('There are no parameters and no body.', '')
    file = f'{sample}-{title.lower()}.json'
    if (SAMPLES / file).exists():
        yield from (f'.. literalinclude:: ../samples/{file}', '   :language: json', '')


def _table(widths: str, head: Sequence[str], rows: Iterator[Any] | Sequence[Any]) -> Iterator[str]:
    yield from ('.. list-table::', '   :header-rows: 1', f'   :widths: {widths}', '')
    for row in (head, *rows):
        for mark, cell in zip('*' + ' ' * (len(row) - 1), row, strict=True):
            yield f'   {mark} - {cell}'
    yield ''


def _fields(schema: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Yield the rows of the fields of a body, each followed by those inside it."""
    for inner in schema.get('oneOf', [schema]):
        content = inner.get('items', inner)
        properties, required = content.get('properties', {}), content.get('required', ())
        for name, field in properties.items():
            yield from _parameters('body', {name: field}, required)
            yield from _fields(field)


def _parameters(
    place: str, schemas: Mapping[str, Any], required: Sequence[str] | None = None
) -> Iterator[Sequence[str]]:
    for name, schema in schemas.items():
        is_required = required is None or name in required
        described = ' '.join([schema['description'], *_limits(schema)])
        yield name if is_required else f'{name} (Optional)', place, _type(schema), described


def _values(query: Mapping[str, Any] | None) -> Mapping[str, Any]:
    properties = {} if query is None else query['properties']
    return {name: values['items'] for name, values in properties.items()}


def _header(name: str) -> Mapping[str, Any]:
    header = openapi.HEADERS[name]
    return {**header['schema'], 'description': header['description']}


def _type(schema: Mapping[str, Any]) -> str:
    if 'oneOf' in schema:
        return ' or '.join(dict.fromkeys(map(_type, schema['oneOf'])))
    kinds = schema['type'] if isinstance(schema['type'], list) else [schema['type']]
    shown = schema.get('format')
    return ' or '.join(kinds) + (f' ({shown})' if shown in _SHOWN_FORMATS else '')


def _limits(schema: Mapping[str, Any]) -> Iterator[str]:
    """Describe the limits of a value in sentences."""
    choices = [each for each in schema.get('oneOf', [schema]) if each != {'type': 'null'}]
    inner = choices[0] if len(choices) == 1 else {}
    if 'enum' in inner:
        yield f'One of {", ".join(f"``{value}``" for value in inner["enum"])}.'
    if 'minimum' in inner and 'maximum' in inner:
        yield f'From {inner["minimum"]} to {inner["maximum"]}.'
    if 'maxLength' in inner:
        yield f'Up to {inner["maxLength"]} characters.'
    if inner.get('uniqueItems'):
        yield 'Unique items.'
