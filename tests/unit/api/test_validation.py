# SPDX-License-Identifier: Apache-2.0
"""How a refusal names the field, in Nova's API and in ours; which times are accepted."""

import datetime
from typing import Any

import pytest

from nova_precache import exception
from nova_precache.api import times, validation

SCHEMA: dict[str, Any] = {
    'type': 'object',
    'properties': {
        'request': {
            'type': 'object',
            'properties': {
                'images': {'type': 'array', 'items': {'type': 'string'}},
                'deadline': {'type': ['string', 'null'], 'format': 'date-time'},
            },
            'additionalProperties': False,
        }
    },
}


def complaint(check: Any, body: Any) -> str:
    with pytest.raises(exception.InvalidInput) as caught:
        check(body, SCHEMA)
    return str(caught.value)


def test_field_paths_match_each_api() -> None:
    body = {'request': {'images': ['a', 5]}}
    rest = "Value: 5. 5 is not of type 'string'"
    ours = complaint(validation.check_document, body)
    assert ours == f'Invalid input for field/attribute request.images.1. {rest}'
    assert complaint(validation.check_body, body) == f'Invalid input for field/attribute 1. {rest}'


def test_unknown_key_named_with_its_place() -> None:
    message = complaint(validation.check_document, {'request': {'colour': 'red'}})
    assert 'field/attribute request.' in message
    assert "'colour' was unexpected" in message


def test_non_object_reported_without_field() -> None:
    assert complaint(validation.check_document, 5) == "5 is not of type 'object'"


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('2035-05-01T22:00:00Z', '2035-05-01T22:00:00.000000Z'),
        ('2035-05-01t22:00:00z', '2035-05-01T22:00:00.000000Z'),
        ('2035-05-01T22:00:00', '2035-05-01T22:00:00.000000Z'),
        ('2035-05-01T22:00:00.1234567+02:30', '2035-05-01T19:30:00.123456Z'),
    ],
)
def test_times_parsed_with_or_without_zone(text: str, expected: str) -> None:
    read = times.from_text(text)
    assert read.tzinfo is None
    assert times.to_text(read) == expected


@pytest.mark.parametrize(
    'text',
    [
        '',
        'now',
        '2035-05-01',
        '20350501T220000Z',
        '2035-13-01T00:00:00Z',
        '2035-02-30T00:00:00Z',
        '2035-05-01T24:00:01Z',
        '2035-05-01T23:59:60Z',
        '2035-05-01T22:00:00+25:00',
        '٢٠٣٥-05-01T22:00:00Z',
        '0000-01-01T00:00:00Z',
        '0999-12-31T00:00:00Z',
        '9999-12-31T23:59:59-01:00',
    ],
)
def test_time_outside_database_range_refused(text: str) -> None:
    message = complaint(validation.check_document, {'request': {'deadline': text}})
    assert 'request.deadline' in message


def test_time_is_comparable_with_database() -> None:
    naive = datetime.datetime(2035, 5, 1)  # noqa: DTZ001 - as the database keeps it
    assert times.from_text('2035-05-01T02:00:00+02:00') == naive
    assert times.to_text(None) is None
