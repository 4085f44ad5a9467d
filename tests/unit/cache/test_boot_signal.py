# SPDX-License-Identifier: Apache-2.0
"""Precaching processes see boots from their start to their end, however they end."""

import pathlib
import subprocess
import sys

import pytest

from nova_precache.cache import boot_signal

_BOOT = (
    'import sys, time; from nova_precache.cache import boot_signal\n'
    'with boot_signal.WaitingBoots(sys.argv[1]).wait():\n'
    '    print("waits", flush=True); time.sleep(600)'
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += boot_signal.LOOK_SECONDS
        return self.now


@pytest.fixture
def seen(tmp_path: pathlib.Path) -> boot_signal.WaitingBoots:
    """The view of a compute, which reads the directory each time."""
    return boot_signal.WaitingBoots(str(tmp_path), Clock())


def test_waiting_boot_is_seen(tmp_path: pathlib.Path, seen: boot_signal.WaitingBoots) -> None:
    assert not seen.any_waiting()
    with boot_signal.WaitingBoots(str(tmp_path)).wait():
        assert seen.any_waiting()
    assert not seen.any_waiting()


def test_boots_seen_until_last_ends(seen: boot_signal.WaitingBoots) -> None:
    with seen.wait():
        with seen.wait():
            assert seen.any_waiting()
        assert seen.any_waiting()
    assert not seen.any_waiting()


def test_boot_seen_until_its_process_dies(
    tmp_path: pathlib.Path, seen: boot_signal.WaitingBoots
) -> None:
    command = [sys.executable, '-c', _BOOT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as boot:
        assert boot.stdout is not None
        assert boot.stdout.readline() == 'waits\n'
        assert seen.any_waiting()
        boot.kill()
    assert not seen.any_waiting()


def test_polling_rate_is_bounded(tmp_path: pathlib.Path) -> None:
    now = [100.0]
    waiting = boot_signal.WaitingBoots(str(tmp_path), lambda: now[0])
    assert not waiting.any_waiting()
    with waiting.wait():
        assert not waiting.any_waiting()
        now[0] += boot_signal.LOOK_SECONDS
        assert waiting.any_waiting()


def test_boot_continues_without_lock_directory(tmp_path: pathlib.Path) -> None:
    nowhere = boot_signal.WaitingBoots(str(tmp_path / 'nowhere'), Clock())
    with nowhere.wait():
        assert not nowhere.any_waiting()
