# SPDX-License-Identifier: Apache-2.0
"""The kernel's view of threads and programs that yield, and of those that need not."""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import hypothesis
import psutil
import pytest
from hypothesis import strategies as st

from nova_precache import priority, transfer_control
from nova_precache.transfer_control import Need
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

NONE, IDLE = psutil.IOPRIO_CLASS_NONE, psutil.IOPRIO_CLASS_IDLE
BEST_EFFORT = psutil.IOPRIO_CLASS_BE
# The scheduling policy and the I/O class of a transfer's thread.
LOWERED, RAISED = (os.SCHED_BATCH, IDLE), (os.SCHED_OTHER, NONE)

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


def test_thread_is_idle_then_restored() -> None:
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    with priority.idle_io(transfer_control.Control()):
        assert _io_class() == IDLE
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    assert _io_class() == NONE


def test_thread_restored_after_error() -> None:
    with pytest.raises(ValueError), priority.idle_io(transfer_control.Control()):
        raise ValueError
    assert _io_class() == NONE


def test_thread_of_other_class_restored() -> None:
    thread = psutil.Process(threading.get_native_id())
    thread.ionice(BEST_EFFORT, 6)
    try:
        with priority.idle_io(transfer_control.Control()):
            assert _io_class() == IDLE
        assert (thread.ionice().ioclass, thread.ionice().value) == (BEST_EFFORT, 6)
    finally:
        thread.ionice(NONE)


def test_only_own_thread_becomes_idle() -> None:
    with priority.idle_io(transfer_control.Control()):
        classes = []
        for thread in psutil.Process().threads():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that an earlier test left
                classes.append(_io_class(thread.id))
        assert classes.count(IDLE) == 1


def test_thread_lifted_while_awaited() -> None:
    reins = transfer_control.Control()
    with priority.idle_io(reins):
        with reins.waited_for():
            assert _io_class() == NONE
        assert _io_class() == IDLE


def test_boot_is_never_idle() -> None:
    with priority.idle_io(transfer_control.Control(is_boot=True)):
        assert _io_class() == NONE


def test_other_thread_lifts_working_thread() -> None:
    reins = transfer_control.Control()
    ids: list[int] = []
    is_idle, done = threading.Event(), threading.Event()

    def work() -> None:
        with priority.idle_io(reins):
            ids.append(threading.get_native_id())
            is_idle.set()
            done.wait(TIMEOUT_SECONDS)

    thread = threading.Thread(target=work)
    thread.start()
    is_idle.wait(TIMEOUT_SECONDS)
    try:
        assert _io_class(ids[0]) == IDLE
        with reins.waited_for():
            assert _io_class(ids[0]) == NONE
        assert _io_class(ids[0]) == IDLE
    finally:
        done.set()
        thread.join(TIMEOUT_SECONDS)


def _kernel_view(thread_id: int) -> tuple[int, int]:
    return os.sched_getscheduler(thread_id), _io_class(thread_id)


@pytest.fixture
def reins() -> transfer_control.Control:
    return transfer_control.Control()


@pytest.fixture
def transfer(reins: transfer_control.Control) -> Iterator[int]:
    """The id of a thread that writes a transfer's bytes."""
    ids: list[int] = []
    started, done = threading.Event(), threading.Event()

    def work() -> None:
        with priority.sched_batch(reins), priority.idle_io(reins):
            ids.append(threading.get_native_id())
            started.set()
            done.wait(TIMEOUT_SECONDS)
            ids.clear()
        ids.extend(_kernel_view(threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(TIMEOUT_SECONDS)
    try:
        yield ids[0]
    finally:
        done.set()
        thread.join(TIMEOUT_SECONDS)
    assert tuple(ids) == RAISED


def test_transfer_raised_while_other_hosts_read_it(
    reins: transfer_control.Control, transfer: int
) -> None:
    assert _kernel_view(transfer) == LOWERED
    with reins.waited_for(Need.BYTES):
        with reins.waited_for(Need.BYTES):
            assert _kernel_view(transfer) == RAISED
        assert _kernel_view(transfer) == RAISED, 'one host still reads'
    assert _kernel_view(transfer) == LOWERED


def test_boot_raises_only_io_of_transfer(reins: transfer_control.Control, transfer: int) -> None:
    with reins.waited_for():
        assert _kernel_view(transfer) == (os.SCHED_BATCH, NONE)
        with reins.waited_for(Need.BYTES):
            assert _kernel_view(transfer) == RAISED
        assert _kernel_view(transfer) == (os.SCHED_BATCH, NONE)
    assert _kernel_view(transfer) == LOWERED


def test_wait_left_twice_lowers_transfer_once(
    reins: transfer_control.Control, transfer: int
) -> None:
    with reins.waited_for(Need.BYTES), reins.waited_for(Need.BYTES) as left:
        for leaver in [threading.Thread(target=left.leave) for _ in range(4)]:
            leaver.start()
        left.leave()
        assert _kernel_view(transfer) == RAISED, 'the other host still reads'
    assert _kernel_view(transfer) == LOWERED


def test_transfer_raised_next_time_after_refusal(
    reins: transfer_control.Control,
    transfer: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, 'nova_precache.priority')
    with monkeypatch.context() as refusing:
        _refuse(refusing, 'ionice', psutil.AccessDenied(1))
        refusing.setattr(os, 'sched_setscheduler', _deny)
        with reins.waited_for(Need.BYTES):
            assert _kernel_view(transfer) == LOWERED
    assert caplog.text.count(f'Cannot change the priority of thread {transfer}') == 4
    with reins.waited_for(Need.BYTES):
        assert _kernel_view(transfer) == RAISED
    assert _kernel_view(transfer) == LOWERED


def _deny(*_: object) -> None:
    raise PermissionError('not here')


@hypothesis.settings(deadline=None)
@hypothesis.given(steps=st.lists(st.sampled_from([None, *Need])))
def test_priority_follows_waits_in_any_order(steps: list[Need | None]) -> None:
    """None leaves the oldest wait."""
    reins = transfer_control.Control()
    waits: list[tuple[Need, transfer_control.Wait]] = []
    me = threading.get_native_id()
    with priority.sched_batch(reins), priority.idle_io(reins):
        for need in steps:
            if need is not None:
                waits.append((need, reins.waited_for(need)))
            elif waits:
                waits.pop(0)[1].leave()
            needs = {each for each, _ in waits}
            policy = os.SCHED_OTHER if Need.BYTES in needs else os.SCHED_BATCH
            assert _kernel_view(me) == (policy, NONE if needs else IDLE)
    assert _kernel_view(me) == RAISED


@pytest.mark.parametrize('refusal', [psutil.AccessDenied(1), OSError(38, 'not implemented')])
def test_work_continues_without_settable_class(
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
def test_work_continues_with_unknown_classes(
    refusal: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(psutil.Process, 'ionice', refuse)
    done = []
    with priority.idle_io(transfer_control.Control()):
        done.append('work')
    assert done == ['work']


def test_work_continues_without_class_support(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(psutil.Process, 'ionice')
    done = []
    with priority.idle_io(transfer_control.Control()):
        done.append('work')
    assert done == ['work']


def test_batch_thread_restored_when_done() -> None:
    with priority.sched_batch(transfer_control.Control()):
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        with priority.sched_batch(transfer_control.Control()):
            assert os.sched_getscheduler(0) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_work_continues_when_batch_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, 'sched_setscheduler', _deny)
    caplog.set_level(logging.DEBUG, 'nova_precache.priority')
    with priority.sched_batch(transfer_control.Control()):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert caplog.messages[-1].startswith('Cannot change the priority of thread ')
    assert caplog.messages[-1].endswith(': not here')


def test_work_continues_without_batch_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, 'SCHED_BATCH')
    with priority.sched_batch(transfer_control.Control()):
        assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_program_starts_idle_and_nice() -> None:
    with _idle_program() as pid:
        assert _threads(pid) == {(IDLE, 19)}


def test_program_starts_without_missing_tools(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv('PATH', '/nonexistent')
    assert priority.idle_command(['qemu-img', 'info']) == ['qemu-img', 'info']
    assert 'ionice is not installed; running qemu-img without it' in caplog.text


def test_awaited_program_lifted_entirely(lifted_niceness: int) -> None:
    reins = transfer_control.Control()
    with _idle_program() as pid, priority.follow(pid, reins):
        assert _threads(pid) == {(IDLE, 19)}
        with reins.waited_for():
            assert _threads(pid) == {(NONE, lifted_niceness)}
        assert _threads(pid) == {(IDLE, 19)}


def test_initially_urgent_program_lifted(
    lifted_niceness: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine, a launcher that is nice waits long for a CPU.
    monkeypatch.setattr(priority, '_LAUNCH_SECONDS', TIMEOUT_SECONDS)
    reins = transfer_control.Control()
    with reins.waited_for():
        for _ in range(10):
            command = priority.idle_command(['sleep', '60'])
            with _program(command) as pid, priority.follow(pid, reins):
                wait_until(lambda pid=pid: _name(pid) == 'sleep', 'the program was launched')
                assert _threads(pid) == {(NONE, lifted_niceness)}


def _name(pid: int) -> str:
    return psutil.Process(pid).name()


def test_ended_program_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
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


def test_io_lifted_without_niceness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reins = transfer_control.Control()
    with _idle_program() as pid, priority.follow(pid, reins):
        _refuse(monkeypatch, 'nice', psutil.AccessDenied(pid))
        with reins.waited_for():
            assert _threads(pid) == {(NONE, 19)}
