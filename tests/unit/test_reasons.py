# SPDX-License-Identifier: Apache-2.0
"""A reason is one short line, whatever it quotes."""

import pytest

from nova_precache import model, reasons


@pytest.mark.parametrize(
    ('quoted', 'line'),
    [
        ('qemu-img: no such file', 'qemu-img: no such file'),
        ('first\r\n\tsecond\u2028third', 'first second third'),
        ('\x1b[31mred\x1b[0m and \x1b]0;title\x07bell\x07', 'red and bell'),
        ('half \ud83d a character', 'half ? a character'),
        ('a \U0001f600 face', 'a ? face'),
        ('NUL\x00 and \x9b C1', 'NUL and C1'),
        ('right to left \u202e', 'right to left'),
        ('été 日本', 'été 日本'),
        ('at rabbit://user:p@ss@host/vhost', 'at rabbit://***@host/vhost'),
        ('see https://glance.example/v2', 'see https://glance.example/v2'),
        ('', ''),
    ],
)
def test_a_reason_becomes_a_line_that_any_log_and_database_can_hold(quoted: str, line: str) -> None:
    assert reasons.clean(quoted) == line
    assert model.ImageOutcome('error', quoted).reason == line


def test_a_long_reason_is_shortened_and_says_so() -> None:
    line = reasons.clean('<html>' + 'x' * 10**6)
    assert len(line) == reasons.MAX_LENGTH
    assert line.endswith(' ...')


def test_a_clean_reason_stays_as_it_is() -> None:
    line = reasons.clean('x\x00' * 10**4)
    assert reasons.clean(line) == line


def test_an_outcome_that_comes_from_another_process_is_cleaned_too() -> None:
    outcome = model.ImageOutcome.from_wire({'status': 'error', 'reason': 'a\nb'})
    assert outcome.reason == 'a b'
