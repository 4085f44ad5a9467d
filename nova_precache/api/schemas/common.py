# SPDX-License-Identifier: Apache-2.0
"""Building blocks of the schemas.

The descriptions of properties are shown in the OpenAPI document and in the API reference.
"""

from collections.abc import Sequence

from nova_precache import model


def described(schema: model.Json, description: str) -> model.Json:
    """Return the schema with a description."""
    return {**schema, 'description': description}


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
    found = described(items(schema), f'The {collection} of this page.')
    links = f'{collection}_links'
    return strict({collection: found, links: PAGE_LINKS}, required=[collection])


UUID: model.Json = {'type': 'string', 'format': 'uuid'}
TIME: model.Json = {'type': 'string', 'format': 'date-time'}
STRING: model.Json = {'type': 'string'}
BOOLEAN: model.Json = {'type': 'boolean'}
NUMBER: model.Json = {'type': 'number'}
COUNT: model.Json = {'type': 'integer', 'minimum': 0}
DESCRIPTION: model.Json = {
    'type': 'string',
    'maxLength': 1024,
    'format': 'text',
    'description': 'A free text of the caller.',
}
NAME: model.Json = {'type': 'string', 'minLength': 1, 'maxLength': 255, 'format': 'text'}
# Nova's pattern for host names, except for a trailing newline, which a dollar sign allows; a
# list query may name a host that does not exist.
HOST: model.Json = {
    'type': 'string',
    'pattern': r'^[a-zA-Z0-9-._]*$(?!\n)',
    'minLength': 1,
    'maxLength': 255,
}
# An id, a UUID or a name; text of digits is an id.
AGGREGATE: model.Json = {
    'oneOf': [{'type': 'integer', 'minimum': 1, 'maximum': 2**31 - 1}, NAME],
    'description': 'The id, UUID or name of the aggregate.',
}
IMAGES: model.Json = {
    'type': 'array',
    'minItems': 1,
    'uniqueItems': True,
    'items': UUID,
    'description': 'The ids of the images.',
}
LINKS: model.Json = items(
    whole(
        {
            'rel': described(STRING, 'The relation.'),
            'href': {'type': 'string', 'format': 'uri', 'description': 'The URL.'},
        }
    )
)
PAGE_LINKS = described(LINKS, 'The link ``next`` to the next page; absent on the last one.')

HOST_NAME = described(STRING, 'The name of the host.')
CELL_NAME = described(nullable(STRING), 'The name of its cell; null if it has none.')
FREE_BYTES = described(nullable(COUNT), 'Free bytes for the cache; null if not reported.')
# The aggregate as it was when the request or pin was created.
RECORDED_AGGREGATE: model.Json = whole(
    {
        'id': described(COUNT, 'The id of the aggregate.'),
        'uuid': described(UUID, 'The UUID of the aggregate.'),
        'name': described(STRING, 'The name of the aggregate at the time of creation.'),
    }
)
OWNER: model.Json = {
    'project_id': described(
        nullable(STRING), 'The project of the caller who created it; null without one.'
    ),
    'user_id': described(nullable(STRING), 'The user who created it.'),
}

# Up to 18 digits, which fit into the integers of every database.
POSITIVE: model.Json = {'type': 'string', 'pattern': '^0*[1-9][0-9]{0,17}$'}
LIMIT = once(
    {
        **POSITIVE,
        'description': 'The size of the page, up to ``[api] max_limit``.',
        'examples': ['10'],
    }
)
AGGREGATE_HOSTS = once(described(NAME, 'Only hosts of this aggregate, by its id, UUID or name.'))
PROJECT_FILTER = once(
    described(NAME, 'Only those of this project; only admins may name another than their own.')
)
AGGREGATE_FILTER = once(
    described(
        NAME,
        'Only items for this aggregate, by its id, UUID or name; a deleted one is found by '
        'its id only. Callers who may not list aggregates get only their own requests and '
        'pins for it, or an empty list.',
    )
)


def sort(keys: Sequence[str]) -> model.Json:
    """Build the query parameter that sorts a list; the handler parses it."""
    key = f'({"|".join(keys)})(:(asc|desc))?'
    return once(
        {
            'type': 'string',
            'pattern': f'^{key}(,{key})*$(?!\\n)',
            'description': 'Fields to sort by, each ``key:asc`` or ``key:desc``, separated by '
            f'commas. Keys: {", ".join(f"``{each}``" for each in keys)}. Items without a value '
            'come last, or first with ``desc``.',
            'examples': [f'{keys[0]}:desc'],
        }
    )


def marker(schema: model.Json, of: str) -> model.Json:
    """Build the query parameter that names the last item of the page before."""
    return once(described(schema, f'The {of} of the last item of the previous page.'))
