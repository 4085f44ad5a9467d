# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document: it is valid, has every operation, and states what is validated."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest

from nova_precache.api import microversion, openapi, routes
from nova_precache.api.schemas import requests


@pytest.fixture
def document(api: Any) -> Any:
    response = api.get('/v1/openapi.json')
    assert response.status_int == 200
    return response.json


def test_document_is_valid_openapi(document: Any) -> None:
    assert document['openapi'] == '3.1.0'
    openapi_spec_validator.validate(document)


def test_document_names_its_server(document: Any) -> None:
    assert document['servers'] == [{'url': 'http://api.example:8774'}]


def test_document_has_exactly_v1_operations(document: Any) -> None:
    described = {
        (method.upper(), path) for path, methods in document['paths'].items() for method in methods
    }
    assert described == set(_served()) | {('GET', '/v1/openapi.json')}


def _served() -> Iterator[tuple[str, str]]:
    prefix = microversion.PRECACHE.prefix
    for path, methods in routes.RESOURCES.items():
        if path.startswith(f'{prefix}/'):
            yield from ((method, path) for method in methods)


def test_document_has_every_served_action(document: Any) -> None:
    actions = routes.RESOURCES['/v1/requests/{id}/action']['POST'].actions
    bodies = document['components']['schemas']['Action']['oneOf']
    assert {name for body in bodies for name in body['required']} == set(actions)


def test_every_body_example_accepted(document: Any) -> None:
    checked = 0
    for operation in _operations(document):
        for content in operation.get('requestBody', {}).get('content', {}).values():
            schema = {**content['schema'], 'components': document['components']}
            jsonschema.Draft202012Validator(schema).validate(content['example'])
            checked += 1
    assert checked == len([each for each in _served() if each[0] in {'POST', 'PATCH'}])


def test_operations_have_names_and_errors(document: Any) -> None:
    names = [operation['operationId'] for operation in _operations(document)]
    assert len(set(names)) == len(names)
    for operation in _operations(document):
        assert {'400', '406', '503'} <= set(operation['responses'])
        needs_token = operation.get('security') != []
        assert ('401' in operation['responses']) == needs_token
        assert ('403' in operation['responses']) == needs_token


def _operations(document: Any) -> list[Any]:
    return [operation for methods in document['paths'].values() for operation in methods.values()]


def test_errors_match_documented_schema(api: Any, document: Any) -> None:
    seen = set()
    for response in (
        api.get('/v1/pins?limit=0'),
        api.get('/v1/pins', token='u:p1'),
        api.get('/v1/pins/unknown'),
        api.get('/v1/pins', headers={'OpenStack-API-Version': 'image-precache 9.0'}),
        api.post('/v1/pins', raw=b'<pin/>', headers={'Content-Type': 'text/xml'}),
    ):
        name = f'Error{response.status_int}'
        schema = {
            '$ref': f'#/components/schemas/{name}',
            'components': document['components'],
        }
        jsonschema.Draft202012Validator(schema).validate(response.json)
        assert not jsonschema.Draft202012Validator(schema).is_valid({'other': response.json})
        seen.add(response.status_int)
    assert seen == {400, 403, 404, 406, 415}


def test_documented_schemas_are_validating_schemas(document: Any) -> None:
    """A changed schema changes the document, except for what only this service knows."""
    named = document['components']['schemas']['NewRequest']['properties']['request']
    asked = requests.CREATE['properties']['request']
    assert set(named['properties']) == set(asked['properties'])
    assert named['properties']['priority'] == asked['properties']['priority']
    own = re.findall(r'"format": "(\w[\w-]*)"', json.dumps(document))
    assert set(own) == {'uuid', 'date-time', 'uri'}


def test_all_callers_get_same_document(api: Any, document: Any) -> None:
    assert api.get('/v1/openapi.json').json == document
    assert 'servers' not in routes.document()


def test_parameters_and_fields_are_explained(document: Any) -> None:
    for operation in _operations(document):
        for parameter in operation['parameters']:
            assert '$ref' in parameter or parameter['description']
    errors = {f'Error{status}' for status in openapi.ERRORS}
    for name, schema in document['components']['schemas'].items():
        if name not in errors:
            assert list(_unexplained(schema, name)) == []


def _unexplained(schema: Any, where: str) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _unexplained(item, where)
    elif isinstance(schema, dict):
        for name, field in schema.get('properties', {}).items():
            if not {'description', '$ref'} & field.keys():
                yield f'{where}.{name}'
            yield from _unexplained(field, f'{where}.{name}')
        for key in ('oneOf', 'items'):
            yield from _unexplained(schema.get(key), where)


def test_refusal_has_its_own_reason(document: Any) -> None:
    refusal = document['paths']['/v1/pins/{id}']['delete']['responses']['409']
    assert refusal == {
        '$ref': '#/components/responses/Error409',
        'description': 'The pin has ended already.',
    }


def test_document_has_no_other_method(api: Any) -> None:
    refused = api.post('/v1/openapi.json', {})
    assert refused.status_int == 405
    assert refused.headers['Allow'] == 'GET'
