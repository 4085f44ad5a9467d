# SPDX-License-Identifier: Apache-2.0
"""Checks bodies and queries by their schemas; the messages name the field as Nova's do."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jsonschema
from oslo_utils import uuidutils

from nova_precache import exception, model, shown
from nova_precache.api import times
from nova_precache.api.schemas import common

_FORMATS = jsonschema.FormatChecker(formats=())
# Nova's regular expressions exclude all characters above this one, and so all rarer scripts.
_GREATEST_CHARACTER = '\ufffe'


class InvalidName(exception.InvalidInput):
    """A name contains invalid characters."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"An invalid 'name' value was provided. The name must be: {rule}")


def check_body(body: Any, schema: model.Json) -> None:
    """Check the body of a request, as Nova does.

    :raises nova_precache.exception.InvalidInput: names the innermost invalid field
    """
    error = _find_error(body, schema)
    if error is not None:
        field = error.path[-1] if error.path else None
        raise _to_invalid(error, 'field/attribute', field)


def check_document(body: Any, schema: model.Json) -> None:
    """Check the body of a request of /v1.

    :raises nova_precache.exception.InvalidInput: names the invalid field with its path
    """
    error = _find_error(body, schema)
    if error is not None:
        field = '.'.join(map(str, error.path)) or None
        raise _of_field(error, 'field/attribute', field)


def check_query(query: Mapping[str, Sequence[str]], schema: model.Json) -> None:
    """Check the parameters of a query, each of which is a list of its values.

    :raises nova_precache.exception.InvalidInput: names the invalid parameter
    """
    error = _find_error(dict(query), schema)
    if error is not None:
        parameter = error.path[0] if error.path else None
        raise _of_field(error, 'query parameters', parameter)


def to_integer(text: str, name: str) -> int:
    """Parse an integer from a path.

    :raises nova_precache.exception.InvalidInput: it is not an integer
    """
    try:
        return int(text)
    except ValueError as error:
        raise exception.InvalidInput(
            f'Invalid input received: {name} must be an integer'
        ) from error


def _find_error(instance: Any, schema: model.Json) -> jsonschema.ValidationError | None:
    validator = jsonschema.Draft202012Validator(schema, format_checker=_FORMATS)
    return next(validator.iter_errors(instance), None)


def _to_invalid(
    error: jsonschema.ValidationError, kind: str, where: object
) -> exception.InvalidInput:
    if isinstance(error.cause, InvalidName):
        return error.cause
    if where is None:
        return exception.InvalidInput(error.message)
    return exception.InvalidInput(
        f'Invalid input for {kind} {where}. Value: {error.instance}. {error.message}'
    )


def _of_field(
    error: jsonschema.ValidationError, kind: str, where: object
) -> exception.InvalidInput:
    """Build an error of /v1, which names the field and cuts its value short."""
    names = [name for name in error.path if isinstance(name, str)]
    detail = _detail(error)
    invalid = _to_invalid(_cut_short(error), kind, where)
    if names:
        invalid.field, invalid.detail = names[-1], detail
    return invalid


def _detail(error: jsonschema.ValidationError) -> str:
    """Return what is wrong in a sentence that repeats neither the field nor its value."""
    # A field of several types: the error of the type that it has.
    best = jsonschema.exceptions.best_match([error]) or error
    make = _DETAILS.get(str(best.validator))
    return 'It is not valid.' if make is None else make(best.validator_value, best.instance)


def _named_types(types: str | Sequence[str]) -> str:
    return types if isinstance(types, str) else ' or '.join(t for t in types if t != 'null')


def _repeated(items: Sequence[Any]) -> str:
    repeated = next(item for item in items if items.count(item) > 1)
    return f'{shown.value(repeated)} is listed twice.'


_FORMAT_NAMES = {'uuid': 'a UUID', 'date-time': 'an ISO 8601 time'}
# By the keyword of the schema: makes the sentence from its value and the field's.
_DETAILS: Mapping[str, Callable[[Any, Any], str]] = {
    'minimum': lambda least, value: f'It must be at least {least}.',
    'maximum': lambda most, value: f'It must be at most {most}.',
    'minLength': lambda least, value: 'It must not be empty.',
    'maxLength': lambda most, value: f'It has {len(value)} characters; {most} are allowed.',
    'minItems': lambda least, value: 'It must not be empty.',
    'minProperties': lambda least, value: 'It must not be empty.',
    'maxItems': lambda most, value: f'It has {len(value)} items; {most} are allowed.',
    'uniqueItems': lambda unique, value: _repeated(value),
    'enum': lambda values, value: f'It must be one of {", ".join(map(str, values))}.',
    'type': lambda types, value: f'It must be of type {_named_types(types)}.',
    'format': lambda name, value: f'It must be {_FORMAT_NAMES.get(name, "printable text")}.',
    'required': lambda names, value: f'It must have {", ".join(names)}.',
    'pattern': lambda pattern, value: (
        'It must be a positive integer.'
        if pattern == common.POSITIVE['pattern']
        else 'It contains characters that are not allowed.'
    ),
    'additionalProperties': lambda allowed, value: 'It has an unknown field.',
}


def _cut_short(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Leave the beginning of a long value, unlike Nova."""
    value = shown.value(error.instance)
    if value != str(error.instance):
        error.message = error.message.replace(repr(error.instance), repr(value))
        error.instance = value
    return error


@_FORMATS.checks('uuid')
def _is_uuid(value: object) -> bool:
    return not isinstance(value, str) or uuidutils.is_uuid_like(value)


@_FORMATS.checks('date-time', raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or times.from_text(value) is not None


@_FORMATS.checks('text')
def _is_text(value: object) -> bool:
    """Return False for text that is valid in JSON but that a database cannot store."""
    if not isinstance(value, str):
        return True
    return '\0' not in value and not any('\ud800' <= character <= '\udfff' for character in value)


def _name_format(name: str, accepts: Callable[[str], bool], rule: str) -> None:
    @_FORMATS.checks(name, raises=InvalidName)
    def _check(value: object) -> bool:
        if isinstance(value, str):
            # Nova's regular expressions ignore one trailing newline.
            is_ended = len(value) > 1 and value.endswith('\n')
            if accepts(value[:-1] if is_ended else value):
                return True
        raise InvalidName(rule)


def _is_name(text: str) -> bool:
    if not text:
        return True  # minLength refuses it, with its own message
    return _is_printable(text) and not (_is_space(text[0]) or _is_space(text[-1]))


def _is_printable(text: str) -> bool:
    return all(_is_printable_character(character) for character in text)


def _is_printable_character(character: str) -> bool:
    category = unicodedata.category(character)
    if character > _GREATEST_CHARACTER or category.startswith('C'):
        return False
    return not category.startswith('Z') or category == 'Zs'


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == 'Zs'


_name_format('name', _is_name, 'printable characters. Can not start or end with whitespace.')
_name_format(
    'name_with_leading_trailing_spaces',
    lambda text: _is_printable(text) and not all(map(_is_space, text)),
    'printable characters with at least one non space character',
)
_name_format(
    'az_name',
    lambda text: _is_name(text) and ':' not in text,
    'printable characters except :.Can not start or end with whitespace.',
)
