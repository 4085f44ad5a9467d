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
def test_reason_becomes_storable_line(quoted: str, line: str) -> None:
    assert reasons.clean(quoted) == line
    assert model.ImageOutcome('error', quoted).reason == line


def test_long_reason_is_visibly_shortened() -> None:
    line = reasons.clean('<html>' + 'x' * 10**6)
    assert len(line) == reasons.MAX_LENGTH
    assert line.endswith(' ...')


def test_clean_reason_is_unchanged() -> None:
    line = reasons.clean('x\x00' * 10**4)
    assert reasons.clean(line) == line


def test_received_outcome_is_cleaned() -> None:
    outcome = model.ImageOutcome.from_wire({'status': 'error', 'reason': 'a\nb'})
    assert outcome.reason == 'a b'
