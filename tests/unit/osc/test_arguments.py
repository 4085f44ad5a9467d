# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands: sizes, rates and times."""

import argparse
import datetime
from collections.abc import Callable

import pytest

from nova_precache.osc import arguments


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('1048576', 1048576),
        ('50M', 50 * 2**20),
        ('1G', 2**30),
        ('1.5G', 3 * 2**29),
        ('1MiB', 2**20),
        ('0', 0),
    ],
)
def test_size_is_bytes_or_has_unit(text: str, number: int) -> None:
    assert arguments.size(text) == number


@pytest.mark.parametrize('text', ['', 'M', 'fast', '1X', '50 Mb', '-1M', '8E', '9' * 50])
def test_invalid_size_refused_by_name(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        arguments.size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ('text', 'why'),
    [
        ('', "'' is not an integer"),
        ('1.5', "'1.5' is not an integer"),
        ('1_000', "'1_000' is not an integer"),
        ('\u0663', "'\u0663' is not an integer"),
        ('9' * 19, f"'{'9' * 19}' has more than 18 digits"),
        ('x' * 5000, f"'{'x' * 60}'… is not an integer"),
    ],
)
def test_invalid_integer_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        arguments.integer(text)
    assert str(refused.value) == why


@pytest.mark.parametrize('parse', [arguments.size, arguments.rate, arguments.parse_time])
def test_long_value_is_cut(parse: Callable[[str], object]) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        parse('x' * 5000)
    assert str(refused.value).startswith(f"'{'x' * 60}'… is not a ")
    assert len(str(refused.value)) < 250


def test_rate_may_have_per_second_suffix() -> None:
    assert arguments.rate('50M/s') == arguments.rate('50M') == 50 * 2**20


def test_zero_rate_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match='must be greater than zero'):
        arguments.rate('0')


@pytest.mark.parametrize(
    ('text', 'iso'),
    [
        ('2026-05-01T22:00:00Z', '2026-05-01T22:00:00Z'),
        ('2026-05-01T22:00', '2026-05-01T22:00:00Z'),
        ('2026-05-01', '2026-05-01T00:00:00Z'),
        ('2026-05-01T22:00:00+02:00', '2026-05-01T20:00:00Z'),
    ],
)
def test_time_is_utc_without_zone(text: str, iso: str) -> None:
    assert arguments.parse_time(text) == iso
    assert arguments.past_moment(text) == iso


@pytest.mark.parametrize(
    ('text', 'seconds'), [('+2h', 7200), ('2h', 7200), ('+1h30m', 5400), ('+1d', 86400), ('0', 0)]
)
def test_duration_counts_from_now(text: str, seconds: int) -> None:
    before = datetime.datetime.now(datetime.UTC)
    found = datetime.datetime.fromisoformat(arguments.parse_time(text))
    after = datetime.datetime.now(datetime.UTC)

    span = datetime.timedelta(seconds=seconds)
    assert before + span <= found <= after + span


@pytest.mark.parametrize('text', ['2h', '-2h'])
def test_past_duration_goes_back(text: str) -> None:
    found = datetime.datetime.fromisoformat(arguments.past_moment(text))

    assert found <= datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=2)


@pytest.mark.parametrize(
    'text',
    ['', 'tomorrow', '+2x', '2026-13-01', '+9999999999y', '+9000y', '0001-01-01T00:00+02:00'],
)
def test_invalid_time_refused_by_name(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        arguments.parse_time(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(('text', 'number'), [('90', 90), ('90s', 90), ('1h30m', 5400)])
def test_timeout_is_seconds_or_duration(text: str, number: float) -> None:
    assert arguments.seconds(text) == number


@pytest.mark.parametrize('text', ['', 'soon', '0', '-5', '-1h', '9' * 40])
def test_invalid_timeout_refused_by_name(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}'"):
        arguments.seconds(text)


def test_sort_has_direction_for_each() -> None:
    parser = argparse.ArgumentParser()
    arguments.add_sort(parser, ['host', 'status'])

    assert parser.parse_args(['--sort', 'status:desc,host']).sort == 'status:desc,host:asc'
