# SPDX-License-Identifier: Apache-2.0
"""The kernel's view of threads and programs that yield, and of those that need not."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import pytest

from nova_precache import priority, transfer_control
from tests.service import wait_until

NONE, IDLE = psutil.IOPRIO_CLASS_NONE, psutil.IOPRIO_CLASS_IDLE
BEST_EFFORT = psutil.IOPRIO_CLASS_BE

# A program with a second thread, which reports when both run.
_TWO_THREADS = """
import sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
print('runs', flush=True)
sys.stdin.read()
"""


def _io_class(thread_id: int | None = None) -> int:
    return int(psutil.Process(thread_id or threading.get_native_id()).ionice().ioclass)


def _threads(pid: int) -> set[tuple[int, int]]:
    """Return the I/O class and the niceness of each thread of a program."""
    threads = [psutil.Process(thread.id) for thread in psutil.Process(pid).threads()]
    return {(int(thread.ionice().ioclass), thread.nice()) for thread in threads}


@pytest.fixture(scope='module')
def lifted_niceness() -> int:
    """The niceness that a program with niceness 19 can regain."""
    with _program(['sleep', '60']) as pid:
        program = psutil.Process(pid)
        program.nice(19)
        with contextlib.suppress(psutil.AccessDenied):
            program.nice(os.getpriority(os.PRIO_PROCESS, 0))
        return int(program.nice())


@contextlib.contextmanager
def _program(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def _idle_program() -> Iterator[int]:
    command = priority.idle_command([sys.executable, '-c', _TWO_THREADS])
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b'runs\n'
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_a_thread_is_in_the_idle_class_and_then_as_it_was() -> None:
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with priority.idle_io(transfer_control.Control()):
        assert _io_class() == IDLE
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    assert _io_class() == NONE


def test_a_thread_is_as_it_was_also_when_the_work_fails() -> None:
    with pytest.raises(ValueError), priority.idle_io(transfer_control.Control()):
        raise ValueError
    assert _io_class() == NONE


def test_a_thread_of_another_class_gets_that_again() -> None:
    thread = psutil.Process(threading.get_native_id())
    thread.ionice(BEST_EFFORT, 6)
    try:
        with priority.idle_io(transfer_control.Control()):
            assert _io_class() == IDLE
        assert (thread.ionice().ioclass, thread.ionice().value) == (BEST_EFFORT, 6)
    finally:
        thread.ionice(NONE)


def test_only_the_thread_itself_is_in_the_idle_class() -> None:
    with priority.idle_io(transfer_control.Control()):
        others = psutil.Process().threads()
        classes = [_io_class(thread.id) for thread in others]
        assert classes.count(IDLE) == 1


def test_a_thread_is_as_it_was_while_somebody_waits() -> None:
    reins = transfer_control.Control()
    with priority.idle_io(reins):
        with reins.waited_for():
            assert _io_class() == NONE
        assert _io_class() == IDLE


def test_a_boot_is_never_in_the_idle_class() -> None:
    with priority.idle_io(transfer_control.Control(is_boot=True)):
        assert _io_class() == NONE


def test_a_thread_that_works_is_lifted_by_another_one() -> None:
    reins = transfer_control.Control()
    ids: list[int] = []
    is_idle, done = threading.Event(), threading.Event()

    def work() -> None:
        with priority.idle_io(reins):
            ids.append(threading.get_native_id())
            is_idle.set()
            done.wait(20)

    thread = threading.Thread(target=work)
    thread.start()
    is_idle.wait(20)
    try:
        assert _io_class(ids[0]) == IDLE
        with reins.waited_for():
            assert _io_class(ids[0]) == NONE
        assert _io_class(ids[0]) == IDLE
    finally:
        done.set()
        thread.join(20)


@pytest.mark.parametrize('refusal', [psutil.AccessDenied(1), OSError(38, 'not implemented')])
def test_work_goes_on_where_the_class_cannot_be_set(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _refuse(monkeypatch, 'ionice', refusal)
    caplog.set_level(logging.DEBUG)
    reins = transfer_control.Control()
    with priority.idle_io(reins), reins.waited_for():
        pass
    assert 'Cannot change the priority of thread' in caplog.text


def _refuse(monkeypatch: pytest.MonkeyPatch, name: str, refusal: Exception) -> None:
    """Make psutil refuse to set a priority, but not to read it."""
    honest = getattr(psutil.Process, name)

    def set_or_get(process: psutil.Process, *value: int) -> object:
        if value:
            raise refusal
        return honest(process)

    monkeypatch.setattr(psutil.Process, name, set_or_get)


@pytest.mark.parametrize('refusal', [psutil.AccessDenied(1), OSError(38, 'not implemented')])
def test_work_goes_on_where_nothing_is_known_of_classes(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(psutil.Process, 'ionice', refuse)
    done = []
    with priority.idle_io(transfer_control.Control()):
        done.append('work')
    assert done == ['work']


def test_work_goes_on_where_the_operating_system_has_no_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(psutil.Process, 'ionice')
    done = []
    with priority.idle_io(transfer_control.Control()):
        done.append('work')
    assert done == ['work']


def test_an_unhurried_thread_is_so_until_it_is_done() -> None:
    with priority.sched_batch():
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        with priority.sched_batch():
            assert os.sched_getscheduler(0) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_work_is_hurried_where_the_operating_system_refuses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError('not here')

    monkeypatch.setattr(os, 'sched_setscheduler', refuse)
    caplog.set_level(logging.DEBUG, 'nova_precache.priority')
    with priority.sched_batch():
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert caplog.messages[-1].startswith('Cannot change the priority of thread ')
    assert caplog.messages[-1].endswith(': not here')


def test_work_goes_on_where_the_operating_system_knows_no_such_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, 'SCHED_BATCH')
    with priority.sched_batch():
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_program_starts_in_the_idle_class_and_nice() -> None:
    with _idle_program() as pid:
        assert _threads(pid) == {(IDLE, 19)}


def test_a_program_starts_without_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv('PATH', '/nonexistent')
    assert priority.idle_command(['qemu-img', 'info']) == ['qemu-img', 'info']
    assert 'ionice is not installed; running qemu-img without it' in caplog.text


def test_all_threads_of_a_program_are_lifted_while_somebody_waits(lifted_niceness: int) -> None:
    reins = transfer_control.Control()
    with _idle_program() as pid, priority.follow(pid, reins):
        assert _threads(pid) == {(IDLE, 19)}
        with reins.waited_for():
            assert _threads(pid) == {(NONE, lifted_niceness)}
        assert _threads(pid) == {(IDLE, 19)}


def test_a_program_that_is_urgent_from_the_start_is_lifted(lifted_niceness: int) -> None:
    reins = transfer_control.Control()
    with reins.waited_for():
        for _ in range(10):
            command = priority.idle_command(['sleep', '60'])
            with _program(command) as pid, priority.follow(pid, reins):
                wait_until(lambda pid=pid: _name(pid) == 'sleep', 'the program was launched')
                assert _threads(pid) == {(NONE, lifted_niceness)}


def _name(pid: int) -> str:
    return psutil.Process(pid).name()


def test_a_program_that_has_ended_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reins = transfer_control.Control()
    process = subprocess.Popen(['true'])
    with priority.follow(process.pid, reins):
        process.wait()
        with reins.waited_for():
            pass
    with reins.waited_for(), priority.follow(process.pid, reins):
        pass
    assert 'failed' not in caplog.text


def test_the_io_of_a_program_is_lifted_where_its_niceness_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reins = transfer_control.Control()
    with _idle_program() as pid, priority.follow(pid, reins):
        _refuse(monkeypatch, 'nice', psutil.AccessDenied(pid))
        with reins.waited_for():
            assert _threads(pid) == {(NONE, 19)}
