# SPDX-License-Identifier: Apache-2.0
"""Lower the disk and CPU priority of precaching until something waits for it.

Threads do their I/O in the idle class; child programs also run with the lowest priority
(niceness 19). If the operating system lacks or refuses this, the work continues without it.

The kernel keeps both per thread, and the threads and programs that it starts inherit them.
"""

import contextlib
import dataclasses
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator

import psutil

from nova_precache import transfer_control as controls

LOG = logging.getLogger(__name__)

IDLE_NICENESS = 19
_IDLE_LAUNCHERS = (('nice', '-n', str(IDLE_NICENESS)), ('ionice', '-t', '-c', '3'))
# A launcher becomes the program within milliseconds, unless the CPUs are very busy.
_LAUNCH_SECONDS = 2.0
_LAUNCH_POLL_SECONDS = 0.005


@dataclasses.dataclass(frozen=True)
class Priority:
    """The I/O class and niceness of a thread; None: unknown, or not to be changed."""

    io_class: int | None = None
    io_level: int = 0
    niceness: int | None = None

    @classmethod
    def of(cls, thread_id: int) -> 'Priority':
        """Return the priority of a thread; a process id denotes its first thread."""
        try:
            thread = psutil.Process(thread_id)
            io = thread.ionice()
            return cls(io.ioclass, io.value, thread.nice())
        except (psutil.Error, OSError, AttributeError) as exc:
            LOG.debug('The priority of thread %d is unknown: %s', thread_id, exc)
            return cls()

    def without_niceness(self) -> 'Priority':
        return dataclasses.replace(self, niceness=None)

    def give(self, thread_id: int) -> None:
        """Set it for a thread, as far as the operating system allows."""
        with _refusals_noted(thread_id):
            if self.io_class is not None:
                psutil.Process(thread_id).ionice(self.io_class, self._settable_level())
        with _refusals_noted(thread_id):
            if self.niceness is not None:
                psutil.Process(thread_id).nice(self.niceness)

    def _settable_level(self) -> int:
        """Return the level; 0 for classes without levels, for which some kernels report one."""
        classless = (psutil.IOPRIO_CLASS_NONE, psutil.IOPRIO_CLASS_IDLE)
        return 0 if self.io_class in classless else self.io_level


@contextlib.contextmanager
def idle_io(control: controls.Control) -> Iterator[None]:
    """Put the I/O of the calling thread into the idle class while nothing waits for the transfer.

    Its niceness is unchanged: a thread that holds the interpreter lock but gets no CPU blocks
    all others of the process, also those that serve boots.
    """
    thread_id = threading.get_native_id()
    before = Priority.of(thread_id).without_niceness()
    if before.io_class is None:
        yield
        return
    idle = _idle().without_niceness()
    try:
        with control.at_change(
            lambda: control.is_urgent or control.is_relayed,
            lambda is_raised: (before if is_raised else idle).give(thread_id),
        ):
            yield
    finally:
        before.give(thread_id)


@contextlib.contextmanager
def sched_batch(control: controls.Control) -> Iterator[None]:
    """Stop the calling thread, within, from preempting a computing thread when it wakes up.

    It still gets its share of the CPUs, and so do threads that wait for a lock it holds. If
    threads share a pipeline with one that computes all the time, as for the hash of an image,
    that one is the slowest, and preempting it delays all. So this also hastens a transfer for
    which a boot waits. While other hosts read the partial file, it does not apply: they wait for
    each piece.
    """
    thread_id = threading.get_native_id()
    if not hasattr(os, 'SCHED_BATCH') or os.sched_getscheduler(thread_id) != os.SCHED_OTHER:
        yield
        return

    def schedule(is_preempting: bool) -> None:
        with _refusals_noted(thread_id):
            policy = os.SCHED_OTHER if is_preempting else os.SCHED_BATCH
            os.sched_setscheduler(thread_id, policy, os.sched_param(0))

    try:
        with control.at_change(lambda: control.is_relayed, schedule):
            yield
    finally:
        schedule(is_preempting=True)


def idle_command(command: list[str]) -> list[str]:
    """Return the command that starts a program in the idle class and with niceness 19.

    The launchers exec the program in the same process. Put no other launcher before them:
    :func:`follow` recognises them only as the first programs of the process.
    """
    prefix: list[str] = []
    for launcher in _IDLE_LAUNCHERS:
        if shutil.which(launcher[0]) is None:
            LOG.debug('%s is not installed; running %s without it', launcher[0], command[0])
        else:
            prefix += launcher
    return prefix + command


@contextlib.contextmanager
def follow(pid: int, control: controls.Control) -> Iterator[None]:
    """Run a program with the priority of this process while the control is urgent.

    Otherwise it has the priority of :func:`idle_command`. Its I/O class can always be raised;
    its niceness only with the capability CAP_SYS_NICE, or a resource limit RLIMIT_NICE
    that allows the niceness of this process (20 for 0).
    """
    program = _Program(pid)
    with control.at_urgency(program.set_urgent):
        yield


class _Program:
    """A program that may have ended, so that another process may have its id."""

    def __init__(self, pid: int) -> None:
        self._process: psutil.Process | None = None
        self._lifted = False
        with contextlib.suppress(psutil.Error, OSError):
            self._process = psutil.Process(pid)

    def set_urgent(self, is_urgent: bool) -> None:
        if is_urgent == self._lifted:
            return
        self._lifted = is_urgent
        if is_urgent:
            self._wait_for_launch()
        self._give(Priority.of(os.getpid()) if is_urgent else _idle())

    def _wait_for_launch(self) -> None:
        """Wait until the launchers have exec'd the program: they would lower it again."""
        launchers = {launcher[0] for launcher in _IDLE_LAUNCHERS}
        end = time.monotonic() + _LAUNCH_SECONDS
        while self._name() in launchers and time.monotonic() < end:
            time.sleep(_LAUNCH_POLL_SECONDS)

    def _name(self) -> str | None:
        with contextlib.suppress(psutil.Error, OSError):
            return self._process.name() if self._process else None
        return None

    def _give(self, priority: Priority) -> None:
        """Set the priority of all its threads, also of those started meanwhile."""
        seen: set[int] = set()
        while fresh := self._thread_ids() - seen:
            for thread_id in fresh:
                priority.give(thread_id)
            seen |= fresh

    def _thread_ids(self) -> set[int]:
        with contextlib.suppress(psutil.Error, OSError):
            if self._process is not None and self._process.is_running():
                return {thread.id for thread in self._process.threads()}
        return set()


def _idle() -> Priority:
    return Priority(getattr(psutil, 'IOPRIO_CLASS_IDLE', None), 0, IDLE_NICENESS)


@contextlib.contextmanager
def _refusals_noted(thread_id: int) -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        pass  # The program has ended.
    except (psutil.Error, OSError, AttributeError) as exc:
        LOG.debug('Cannot change the priority of thread %d: %s', thread_id, exc)
