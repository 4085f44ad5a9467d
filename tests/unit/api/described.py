# SPDX-License-Identifier: Apache-2.0
"""Checks that the table of operations describes an answer: its status and its body."""

import re
from collections.abc import Iterator

import jsonschema
import webob

from nova_precache.api import openapi, routes
from nova_precache.api.operations import ANY_METHOD, Operation

# An unexpected error; no operation has one by design.
_FAULTY = 500
_NOT_MODIFIED = 304


def check(request: webob.Request, response: webob.Response) -> None:
    """Check an answer, unless the path or the method is not served."""
    path = request.environ['PATH_INFO']
    for operation in _find(request.method, path):
        where = f'{request.method} {path!r}: {response.status} {response.text}'
        if response.status_int == operation.status:
            _check_body(operation, response, where)
        elif response.status_int == _NOT_MODIFIED and request.method == 'GET':
            assert 'If-None-Match' in request.headers, where
            assert response.body == b'', where
        elif response.status_int != _FAULTY:
            assert response.status_int in _refusals(operation), where


def _find(method: str, path: str) -> Iterator[Operation]:
    for template, methods in {**routes.VERSION_DOCUMENTS, **routes.RESOURCES}.items():
        if re.fullmatch(re.sub(r'\{(\w+)(:[^{}]*)?\}', '[^/]+', template), path):
            operation = methods.get(method) or methods.get(ANY_METHOD)
            if operation is not None:
                yield operation
                return


def _refusals(operation: Operation) -> set[int]:
    actions = operation.actions.values()
    return set(openapi.reasons(operation)).union(*(action.errors for action in actions))


def _check_body(operation: Operation, response: webob.Response, where: str) -> None:
    if operation.answer is None:
        assert response.body == b'', where
    elif response.body:  # HEAD has none
        jsonschema.Draft202012Validator(operation.answer).validate(response.json)
