# SPDX-License-Identifier: Apache-2.0
"""Holds each answer against the OpenAPI document that the service serves of itself."""

import json
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema

_METHODS = ('get', 'head', 'post', 'put', 'delete')
_PARAMETER = re.compile(r'\\{\w+\\}')


class ContractBroken(AssertionError):
    """The service answered what its document does not say."""


class Contract:
    """An OpenAPI document of version 3.1."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._components = document['components']
        self._responses = list(_responses(document['paths']))

    def check(
        self, method: str, url: str, status: int, headers: Mapping[str, str], body: str
    ) -> None:
        """Check an answer, whether it grants or refuses.

        :raises ContractBroken: the call, the status, a header or the body is not in the document
        """
        where = f'{method} {url}: {status}'
        response = self._documented(method, url).get(str(status))
        if response is None:
            raise ContractBroken(f'{where} is not documented')
        response = self._resolved(response)
        for name, header in response.get('headers', {}).items():
            if self._resolved(header).get('required') and name.lower() not in headers:
                raise ContractBroken(f'{where} has no header {name}')
        self._check_body(where, response.get('content'), body)

    def _check_body(self, where: str, content: Mapping[str, Any] | None, body: str) -> None:
        if content is None:
            if body:
                raise ContractBroken(f'{where} has a body: {body}')
            return
        # References in the schema begin at the root of the document.
        schema = {'components': self._components, **content['application/json']['schema']}
        validator = jsonschema.Draft202012Validator(schema)
        errors = [
            f'{error.json_path}: {error.message}'
            for error in validator.iter_errors(json.loads(body))
        ]
        if errors:
            raise ContractBroken(f'{where}: {"; ".join(errors)}')

    def _documented(self, method: str, url: str) -> Mapping[str, Any]:
        path = urllib.parse.urlsplit(url).path
        for known_method, pattern, responses in self._responses:
            if known_method == method.lower() and pattern.search(path):
                return responses
        raise ContractBroken(f'{method} {path} is not documented')

    def _resolved(self, thing: Mapping[str, Any]) -> Mapping[str, Any]:
        """Follow a reference into the components, where it is one."""
        if '$ref' not in thing:
            return thing
        _, _, kind, name = thing['$ref'].split('/')
        found: Mapping[str, Any] = self._components[kind][name]
        return found


def _responses(
    paths: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, re.Pattern[str], Mapping[str, Any]]]:
    for path, operations in paths.items():
        pattern = re.compile(_PARAMETER.sub('[^/]+', re.escape(path)) + '$')
        for method in _METHODS:
            if method in operations:
                yield method, pattern, operations[method]['responses']
