# SPDX-License-Identifier: Apache-2.0
"""Builds an OpenAPI 3.1 document from operations and the JSON schemas that validate them.

OpenAPI 3.1 uses the JSON schema dialect by which the API itself validates, so the schemas are
included unchanged, except for our own formats, which no other tool knows.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nova_precache import model

VERSION_HEADER = 'OpenStack-API-Version'

_JSON = 'application/json'
_VARIABLE = re.compile(r'\{(\w+)\}')
# The format ``text`` of validation.py: a database cannot store NUL.
_TEXT: model.Json = {'pattern': '^[^\\x00]*$'}


@dataclasses.dataclass(frozen=True)
class Error:
    """The response with an error status.

    :ivar title: the key of the code and message in its body; None: a layer in front of the
        service, with other forms of errors, may answer
    """

    status: int
    title: str | None
    why: str
    headers: Sequence[str] = ()

    @property
    def name(self) -> str:
        return f'Error{self.status}'


@dataclasses.dataclass(frozen=True)
class Operation:
    """One method of one path.

    :ivar name: its name in generated clients
    :ivar errors: the error statuses in addition to the common ones
    :ivar path: the schemas of the variables of its path
    :ivar query: the schema of its query, each parameter of which is a list of its values
    :ivar answer: the schema of its answer; None: no body
    :ivar links: operations that accept the id in the answer
    """

    name: str
    summary: str
    tag: str
    status: int = 200
    answer: model.Json | None = None
    errors: Sequence[int] = ()
    path: Mapping[str, model.Json] = dataclasses.field(default_factory=dict)
    query: model.Json | None = None
    body: model.Json | None = None
    example: model.Json | None = None
    headers: Sequence[str] = ()
    links: Mapping[str, str] = dataclasses.field(default_factory=dict)
    is_public: bool = False


@dataclasses.dataclass(frozen=True)
class Api:
    """The API that a document describes.

    :ivar operations: by method and path
    :ivar schemas: named schemas, which are replaced by references wherever they are used
    :ivar parameters: descriptions and examples of path and query parameters
    :ivar headers: of answers
    :ivar common_errors: error statuses that every operation may have
    """

    title: str
    description: str
    version: str
    operations: Mapping[tuple[str, str], Operation]
    schemas: Mapping[str, model.Json]
    errors: Sequence[Error]
    common_errors: Sequence[int]
    parameters: Mapping[str, model.Json]
    headers: Mapping[str, model.Json]
    version_parameter: model.Json
    security: Mapping[str, model.Json]


def document(api: Api) -> model.Json:
    """Build the document, without the URL of a server."""
    refer = _Referrer(api.schemas)
    paths: dict[str, model.Json] = {}
    for (method, path), operation in api.operations.items():
        paths.setdefault(path, {})[method.lower()] = _operation(api, operation, path, refer)
    return {
        'openapi': '3.1.0',
        'info': {'title': api.title, 'description': api.description, 'version': api.version},
        'paths': paths,
        'components': {
            'schemas': {
                **{name: refer.inside(schema) for name, schema in api.schemas.items()},
                **{error.name: _error_schema(error) for error in api.errors},
            },
            'responses': {error.name: _error(error) for error in api.errors},
            'headers': dict(api.headers),
            'parameters': {VERSION_HEADER: dict(api.version_parameter)},
            'securitySchemes': dict(api.security),
        },
        'security': [{name: []} for name in api.security],
    }


class _Referrer:
    """Replaces named schemas by references."""

    def __init__(self, schemas: Mapping[str, model.Json]) -> None:
        self._names = {id(schema): name for name, schema in schemas.items()}

    def __call__(self, schema: Any) -> Any:
        if id(schema) in self._names:
            return {'$ref': f'#/components/schemas/{self._names[id(schema)]}'}
        return self.inside(schema)

    def inside(self, schema: Any) -> Any:
        if isinstance(schema, list | tuple):
            return [self(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        inner = {key: self(value) for key, value in schema.items()}
        if inner.get('format') == 'text':
            del inner['format']
            return {**_TEXT, **inner}
        return inner


def _operation(api: Api, operation: Operation, path: str, refer: _Referrer) -> model.Json:
    made: model.Json = {
        'operationId': operation.name,
        'summary': operation.summary,
        'tags': [operation.tag],
        'parameters': list(_parameters(api, operation, path, refer)),
        'responses': _responses(api, operation, refer),
    }
    if operation.body is not None:
        content = {'schema': refer(operation.body), 'example': operation.example}
        made['requestBody'] = {'required': True, 'content': {_JSON: content}}
    if operation.is_public:
        made['security'] = []
    return made


def _parameters(
    api: Api, operation: Operation, path: str, refer: _Referrer
) -> Iterator[model.Json]:
    yield {'$ref': f'#/components/parameters/{VERSION_HEADER}'}
    for name in _VARIABLE.findall(path):
        schema = refer(operation.path[name])
        yield {'name': name, 'in': 'path', 'required': True, 'schema': schema} | _told(api, name)
    for name, values in (operation.query or {}).get('properties', {}).items():
        yield {'name': name, 'in': 'query', 'schema': refer(values['items'])} | _told(api, name)


def _told(api: Api, name: str) -> model.Json:
    return dict(api.parameters.get(name, {}))


def _responses(api: Api, operation: Operation, refer: _Referrer) -> model.Json:
    statuses = {error.status: error for error in api.errors}
    wanted = sorted({*api.common_errors, *operation.errors})
    if operation.is_public:
        wanted = [status for status in wanted if status not in (401, 403)]
    return {
        str(operation.status): _success(operation, refer),
        **{
            str(status): {'$ref': f'#/components/responses/{statuses[status].name}'}
            for status in wanted
        },
    }


def _success(operation: Operation, refer: _Referrer) -> model.Json:
    made: model.Json = {
        'description': operation.summary,
        'headers': _headers((VERSION_HEADER, 'x-openstack-request-id', *operation.headers)),
    }
    if operation.answer is not None:
        made['content'] = {_JSON: {'schema': refer(operation.answer)}}
    if operation.links:
        made['links'] = {
            name: {'operationId': name, 'parameters': {'id': f'$response.body#{pointer}'}}
            for name, pointer in operation.links.items()
        }
    return made


def _error(error: Error) -> model.Json:
    content: model.Json = {'schema': {'$ref': f'#/components/schemas/{error.name}'}}
    if error.title is not None:
        content['example'] = {error.title: {'code': error.status, 'message': error.why}}
    return {
        'description': error.why,
        'headers': _headers(('x-openstack-request-id', *error.headers)),
        'content': {_JSON: content},
    }


def _error_schema(error: Error) -> model.Json:
    fault: model.Json = {
        'type': 'object',
        'properties': {'code': {'const': error.status}, 'message': {'type': 'string'}},
        'required': ['code', 'message'],
    }
    if error.title is None:
        return {'type': 'object', 'additionalProperties': fault, 'minProperties': 1}
    return {'type': 'object', 'properties': {error.title: fault}, 'required': [error.title]}


def _headers(names: Sequence[str]) -> model.Json:
    return {name: {'$ref': f'#/components/headers/{name}'} for name in names}
