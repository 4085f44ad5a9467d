# SPDX-License-Identifier: Apache-2.0
"""What the schemas of several resources of /v1 are made of."""

from nova_precache import model


def strict(properties: model.Json, **more: object) -> model.Json:
    """An object that has nothing beside these properties."""
    return {'type': 'object', 'properties': properties, **more, 'additionalProperties': False}


def whole(properties: model.Json) -> model.Json:
    """An object of an answer, which always has each of these properties."""
    return strict(properties, required=list(properties))


def only(key: str, content: model.Json) -> model.Json:
    """An object whose one property names what it is about."""
    return strict({key: content}, required=[key])


def once(schema: model.Json) -> model.Json:
    """A parameter of a query, which is a list of its values, that is given at most once."""
    return {'type': 'array', 'items': schema, 'maxItems': 1}


def nullable(schema: model.Json) -> model.Json:
    """What may be null, too."""
    kinds = schema['type'] if isinstance(schema.get('type'), list) else [schema.get('type')]
    if kinds == [None] or 'enum' in schema:
        return {'oneOf': [schema, {'type': 'null'}]}
    return {**schema, 'type': [*kinds, 'null']}


def items(schema: model.Json) -> model.Json:
    return {'type': 'array', 'items': schema}


def page(collection: str, schema: model.Json) -> model.Json:
    """One page of a list, with a link to the next where there is one."""
    links = f'{collection}_links'
    return strict({collection: items(schema), links: LINKS}, required=[collection])


UUID: model.Json = {'type': 'string', 'format': 'uuid'}
TIME: model.Json = {'type': 'string', 'format': 'date-time'}
STRING: model.Json = {'type': 'string'}
BOOLEAN: model.Json = {'type': 'boolean'}
NUMBER: model.Json = {'type': 'number'}
COUNT: model.Json = {'type': 'integer', 'minimum': 0}
DESCRIPTION: model.Json = {'type': 'string', 'maxLength': 1024, 'format': 'text'}
# As Nova names hosts, but for a newline at the end, which a dollar sign lets pass; the query of
# a list may ask for one that there is not.
HOST: model.Json = {
    'type': 'string',
    'pattern': r'^[a-zA-Z0-9-._]*$(?!\n)',
    'minLength': 1,
    'maxLength': 255,
}
# An id, a UUID or a name; a text of digits is an id.
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

# Up to 18 digits, which fit the integers of every database.
POSITIVE: model.Json = {'type': 'string', 'pattern': '^0*[1-9][0-9]{0,17}$'}
LIMIT = once(POSITIVE)
