# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the schemas of /v1."""

from nova_precache import model


def strict(properties: model.Json, **more: object) -> model.Json:
    """Build an object with these properties and no others."""
    return {'type': 'object', 'properties': properties, **more, 'additionalProperties': False}


def whole(properties: model.Json) -> model.Json:
    """Build an object of an answer, which always has all of these properties."""
    return strict(properties, required=list(properties))


def only(key: str, content: model.Json) -> model.Json:
    """Build an object with a single, required property."""
    return strict({key: content}, required=[key])


def once(schema: model.Json) -> model.Json:
    """Build a query parameter, which is a list of its values, that occurs at most once."""
    return {'type': 'array', 'items': schema, 'maxItems': 1}


def nullable(schema: model.Json) -> model.Json:
    """Extend a schema to allow null, too."""
    kinds = schema['type'] if isinstance(schema.get('type'), list) else [schema.get('type')]
    if kinds == [None] or 'enum' in schema:
        return {'oneOf': [schema, {'type': 'null'}]}
    return {**schema, 'type': [*kinds, 'null']}


def items(schema: model.Json) -> model.Json:
    return {'type': 'array', 'items': schema}


def page(collection: str, schema: model.Json) -> model.Json:
    """Build a page of a list, with a link to the next page if there is one."""
    links = f'{collection}_links'
    return strict({collection: items(schema), links: LINKS}, required=[collection])


UUID: model.Json = {'type': 'string', 'format': 'uuid'}
TIME: model.Json = {'type': 'string', 'format': 'date-time'}
STRING: model.Json = {'type': 'string'}
BOOLEAN: model.Json = {'type': 'boolean'}
NUMBER: model.Json = {'type': 'number'}
COUNT: model.Json = {'type': 'integer', 'minimum': 0}
DESCRIPTION: model.Json = {'type': 'string', 'maxLength': 1024, 'format': 'text'}
# Nova's pattern for host names, except for a trailing newline, which a dollar sign allows; a
# list query may name a host that does not exist.
HOST: model.Json = {
    'type': 'string',
    'pattern': r'^[a-zA-Z0-9-._]*$(?!\n)',
    'minLength': 1,
    'maxLength': 255,
}
# An id, a UUID or a name; text of digits is an id.
AGGREGATE_TEXT: model.Json = {
    'type': 'string',
    'minLength': 1,
    'maxLength': 255,
    'format': 'text',
}
AGGREGATE: model.Json = {
    'oneOf': [{'type': 'integer', 'minimum': 1, 'maximum': 2**31 - 1}, AGGREGATE_TEXT]
}
IMAGES: model.Json = {'type': 'array', 'minItems': 1, 'uniqueItems': True, 'items': UUID}
LINKS: model.Json = items(whole({'rel': STRING, 'href': {'type': 'string', 'format': 'uri'}}))

# Up to 18 digits, which fit into the integers of every database.
POSITIVE: model.Json = {'type': 'string', 'pattern': '^0*[1-9][0-9]{0,17}$'}
LIMIT = once(POSITIVE)
