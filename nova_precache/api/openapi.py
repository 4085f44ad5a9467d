# SPDX-License-Identifier: Apache-2.0
"""Builds the OpenAPI 3.1 document of /v1 from its operations and their JSON schemas.

OpenAPI 3.1 uses the JSON schema dialect by which the API itself validates, so the schemas are
included unchanged, except for our own formats, which no other tool knows.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nova_precache import model
from nova_precache.api import faults, microversion
from nova_precache.api.operations import Operation, Table
from nova_precache.api.schemas import common, hosts, pins, requests

_JSON = 'application/json'
_VARIABLE = re.compile(r'\{(\w+)\}')
# The format ``text`` of validation.py: a database cannot store NUL.
_TEXT: model.Json = {'pattern': '^[^\\x00]*$'}
_VERSION = f'{microversion.PRECACHE.service_type} {microversion.PRECACHE.maximum}'
_REQUEST_ID = 'x-openstack-request-id'
_UNLESS_KNOWN = 'If-None-Match'


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


ERRORS: Mapping[int, Error] = {
    error.status: error
    for error in (
        Error(400, faults.BAD_REQUEST.title, 'The body, the query or a header is invalid.'),
        Error(401, None, 'The token is missing or invalid.'),
        Error(403, faults.FORBIDDEN.title, 'The policy does not allow the action.'),
        Error(
            404, faults.NOT_FOUND.title, 'Nothing has this id, or it belongs to another project.'
        ),
        Error(406, faults.NOT_ACCEPTABLE.title, 'The microversion is not supported.'),
        Error(409, faults.CONFLICT.title, 'The status of the object does not allow the action.'),
        Error(413, faults.OVER_LIMIT.title, 'A configured limit would be exceeded.'),
        Error(415, faults.BAD_MEDIA_TYPE.title, 'The media type of the body is not supported.'),
        Error(
            503,
            None,
            'Keystone, the image service or the database does not answer; nothing was saved.',
            ['Retry-After'],
        ),
    )
}
_COMMON_ERRORS = frozenset({400, 401, 403, 406, 415, 503})
_WITH_TOKEN = frozenset({401, 403})

_SCHEMAS: Mapping[str, model.Json] = {
    'Request': requests.REQUEST,
    'NewRequest': requests.CREATE,
    'Action': requests.ACTION,
    'Task': requests.TASK,
    'Estimate': requests.ESTIMATE,
    'EstimatedHost': requests.ESTIMATED_HOST,
    'Host': hosts.HOST,
    'HostImage': hosts.HOST_IMAGE,
    'ImageHost': hosts.IMAGE_HOST,
    'NewPin': pins.CREATE,
    'Pin': pins.PIN,
    'PinWithCoverage': pins.PIN_WITH_COVERAGE,
    'Links': common.PAGE_LINKS,
}
HEADERS: Mapping[str, model.Json] = {
    microversion.HEADER: {
        'description': 'The microversion of the answer.',
        'required': True,
        'schema': common.STRING,
        'example': _VERSION,
    },
    _REQUEST_ID: {
        'description': 'The id of the API request, which also appears in the log of the service.',
        'required': True,
        'schema': common.STRING,
    },
    'Location': {
        'description': 'The URL of the created object.',
        'required': True,
        'schema': {'type': 'string', 'format': 'uri'},
    },
    'ETag': {
        'description': (
            'Identifies this answer; any change of its body, media type or microversion changes it.'
        ),
        'required': True,
        'schema': common.STRING,
    },
    'Cache-Control': {
        'description': 'A client may keep the answer and has to ask whether it is still valid.',
        'required': True,
        'schema': common.STRING,
        'example': 'private, no-cache',
    },
    'Retry-After': {
        'description': 'Seconds to wait before repeating the request, if known.',
        'schema': {'type': 'integer'},
    },
}
_VERSION_PARAMETER: model.Json = {
    'name': microversion.HEADER,
    'in': 'header',
    'description': (
        'The requested microversion, after the type of the service; '
        f'{microversion.PRECACHE.minimum} by default. "latest" is the newest.'
    ),
    'schema': common.STRING,
    'example': _VERSION,
}
_IF_NONE_MATCH: model.Json = {
    'name': _UNLESS_KNOWN,
    'in': 'header',
    'description': (
        'The ETags of answers that the client has kept, or ``*``. If one of them is that of the '
        'current answer, the status is 304.'
    ),
    'schema': common.STRING,
}
NOT_MODIFIED = 'The answer is one of those that ``If-None-Match`` names; there is no body.'
_CACHED = ('ETag', 'Cache-Control')
_WRONG_FIELD: Mapping[str, model.Json] = {
    'field': {
        'type': 'string',
        'description': 'The field of the body, or the parameter, that is wrong, if one is.',
    },
    'detail': {
        'type': 'string',
        'description': 'What is wrong with the field, without its name and value.',
    },
}
_TOKEN: model.Json = {
    'type': 'apiKey',
    'in': 'header',
    'name': 'X-Auth-Token',
    'description': 'A project-scoped Keystone token.',
}


def document(table: Table) -> model.Json:
    """Build the document, without the URL of a server."""
    return {
        'openapi': '3.1.0',
        'info': {
            'title': 'nova-precache',
            'description': 'Caches images on compute hosts before instances boot from them.',
            'version': str(microversion.PRECACHE.maximum),
        },
        'paths': {
            path: {
                method.lower(): _operation(operation, path, method)
                for method, operation in methods.items()
            }
            for path, methods in table.items()
        },
        'components': {
            'schemas': {
                **{name: _inside(schema) for name, schema in _SCHEMAS.items()},
                **{error.name: _error_schema(error) for error in ERRORS.values()},
            },
            'responses': {error.name: _error(error) for error in ERRORS.values()},
            'headers': dict(HEADERS),
            'parameters': {
                microversion.HEADER: _VERSION_PARAMETER,
                _UNLESS_KNOWN: _IF_NONE_MATCH,
            },
            'securitySchemes': {'token': _TOKEN},
        },
        'security': [{'token': []}],
    }


def reasons(operation: Operation) -> Mapping[int, str]:
    """Return the error statuses of an operation, each with its reason."""
    numbers = _COMMON_ERRORS - _WITH_TOKEN if operation.is_public else _COMMON_ERRORS
    if operation.body is not None or operation.actions:
        numbers |= {413}
    found = {**{number: ERRORS[number].why for number in numbers}, **operation.errors}
    return dict(sorted(found.items()))


def _operation(operation: Operation, path: str, method: str) -> model.Json:
    is_read = method == 'GET'
    made: model.Json = {
        'operationId': operation.name,
        'summary': operation.summary,
        'tags': [operation.tag],
        'parameters': [
            *_parameters(operation, path),
            *([{'$ref': f'#/components/parameters/{_UNLESS_KNOWN}'}] if is_read else ()),
        ],
        'responses': {
            str(operation.status): _success(operation, _CACHED if is_read else ()),
            **({'304': _not_modified()} if is_read else {}),
            **{str(number): _refusal(number, why) for number, why in reasons(operation).items()},
        },
    }
    if operation.body is not None:
        content = {'schema': _refer(operation.body), 'example': operation.example}
        made['requestBody'] = {'required': True, 'content': {_JSON: content}}
    if operation.is_public:
        made['security'] = []
    return made


def _parameters(operation: Operation, path: str) -> Iterator[model.Json]:
    yield {'$ref': f'#/components/parameters/{microversion.HEADER}'}
    for name in _VARIABLE.findall(path):
        yield {'name': name, 'in': 'path', 'required': True, **_described(operation.path[name])}
    for name, values in (operation.query or {}).get('properties', {}).items():
        yield {'name': name, 'in': 'query', **_described(values['items'])}


def _described(schema: model.Json) -> model.Json:
    """Describe a parameter; its description is not part of its schema here."""
    bare = {key: value for key, value in schema.items() if key != 'description'}
    return {'description': schema['description'], 'schema': _refer(bare)}


def _not_modified() -> model.Json:
    return {
        'description': NOT_MODIFIED,
        'headers': _headers((microversion.HEADER, _REQUEST_ID, *_CACHED)),
    }


def _success(operation: Operation, more_headers: Sequence[str]) -> model.Json:
    headers = (microversion.HEADER, _REQUEST_ID, *operation.headers, *more_headers)
    made: model.Json = {'description': operation.summary, 'headers': _headers(headers)}
    if operation.answer is not None:
        made['content'] = {_JSON: {'schema': _refer(operation.answer)}}
    if operation.links:
        made['links'] = {
            name: {'operationId': name, 'parameters': {'id': f'$response.body#{pointer}'}}
            for name, pointer in operation.links.items()
        }
    return made


def _refusal(status: int, why: str) -> model.Json:
    shared = ERRORS[status]
    reference = {'$ref': f'#/components/responses/{shared.name}'}
    return reference if why == shared.why else {**reference, 'description': why}


def _error(error: Error) -> model.Json:
    content: model.Json = {'schema': {'$ref': f'#/components/schemas/{error.name}'}}
    if error.title is not None:
        content['example'] = {error.title: {'code': error.status, 'message': error.why}}
    return {
        'description': error.why,
        'headers': _headers((_REQUEST_ID, *error.headers)),
        'content': {_JSON: content},
    }


def _error_schema(error: Error) -> model.Json:
    fault: model.Json = {
        'type': 'object',
        'properties': {
            'code': {'const': error.status},
            'message': {'type': 'string'},
            **_WRONG_FIELD,
        },
        'required': ['code', 'message'],
    }
    if error.title is None:
        return {'type': 'object', 'additionalProperties': fault, 'minProperties': 1}
    return {'type': 'object', 'properties': {error.title: fault}, 'required': [error.title]}


def _headers(names: Sequence[str]) -> model.Json:
    return {name: {'$ref': f'#/components/headers/{name}'} for name in names}


_NAMES = {id(schema): name for name, schema in _SCHEMAS.items()}


def _refer(schema: Any) -> Any:
    """Replace named schemas by references."""
    if id(schema) in _NAMES:
        return {'$ref': f'#/components/schemas/{_NAMES[id(schema)]}'}
    return _inside(schema)


def _inside(schema: Any) -> Any:
    if isinstance(schema, list | tuple):
        return [_refer(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _refer(value) for key, value in schema.items()}
    if inner.get('format') == 'text':
        del inner['format']
        return {**_TEXT, **inner}
    return inner
