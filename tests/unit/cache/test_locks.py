# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: threads, processes, and hosts that share one process."""

import contextlib
import errno
import fcntl
import os
import pathlib
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

from nova_precache import exception, transfer_control
from nova_precache.cache import lock_waiters, locks
from tests.service import wait_until
from tests.unit.cache.conftest import held_by_another_process
from tools.waiting import TIMEOUT_SECONDS

NAME = 'd45dc8a0f9f8ba9b7ea3a7e4a0c3c57c5de0d9d5'
OTHER_NAME = '0123456789abcdef0123456789abcdef01234567'

# Another process that waits for a lock as Nova does, and exits when it has it.
_WAITER = """
import sys
from oslo_concurrency import lockutils
print('starts', flush=True)
with lockutils.lock(sys.argv[2], 'nova-', external=True, lock_path=sys.argv[1]):
    print('held', flush=True)
"""

# Another process that stops waiting on input, and then stays.
_IMPATIENT = """
import sys
from oslo_concurrency import lockutils
lock = lockutils.external_lock(sys.argv[2], 'nova-', sys.argv[1])
lock.acquire(blocking=False)
sys.stdin.readline()
lock.lockfile.close()
sys.stdin.readline()
"""

# Another process that opens and closes a lock file, as fast as it can, and never waits for it.
_RESTLESS = """
import os, sys
for _ in range(20000):
    os.close(os.open(f'{sys.argv[1]}/nova-{sys.argv[2]}', os.O_WRONLY | os.O_NONBLOCK))
"""


def test_lock_file_has_nova_name(tmp_path: pathlib.Path) -> None:
    with locks.ImageLocks(str(tmp_path)).hold(NAME):
        assert os.listdir(tmp_path) == [f'nova-{NAME}']


def test_free_lock_is_acquired(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    for _ in range(2):
        with image_locks.try_hold(NAME) as held:
            assert held


def test_lock_of_other_thread_not_acquired(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    with image_locks.hold(NAME), image_locks.try_hold(NAME) as held:
        assert not held


def test_caches_sharing_directory_share_locks(
    tmp_path: pathlib.Path,
) -> None:
    first, second = (locks.ImageLocks(str(tmp_path)) for _ in range(2))
    with first.hold(NAME), second.try_hold(NAME) as held:
        assert not held


def test_process_hosts_do_not_block(tmp_path: pathlib.Path) -> None:
    first, second = (locks.ImageLocks(str(tmp_path / name)) for name in 'ab')
    with first.hold(NAME), second.try_hold(NAME) as held:
        assert held


def test_lock_of_other_process_awaited(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    got = threading.Event()

    def wait() -> None:
        with image_locks.hold(NAME):
            got.set()

    with held_by_another_process(tmp_path, NAME) as process:
        with image_locks.try_hold(NAME) as held:
            assert not held
        lock_waiters = threading.Thread(target=wait)
        lock_waiters.start()
        # The lock file is open in this process as soon as the thread waits for it.
        while not _is_open(tmp_path / f'nova-{NAME}'):
            lock_waiters.join(0.01)
        assert not got.is_set()
        process.communicate()
    lock_waiters.join(TIMEOUT_SECONDS)
    assert got.is_set()


def test_unusable_directory_faults_storage(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / 'locks').write_text('not a directory')
    image_locks = locks.ImageLocks(str(tmp_path / 'locks'))
    with (
        pytest.raises(exception.StorageError, match=f'Locking {NAME}'),
        image_locks.hold(NAME),
    ):
        pass
    with (
        pytest.raises(exception.StorageError, match=f'Locking {NAME}'),
        image_locks.try_hold(NAME),
    ):
        pass


def test_inner_error_passes_unchanged(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        locks.ImageLocks(str(tmp_path)).hold(NAME),
    ):
        raise FileNotFoundError


@pytest.fixture
def image_locks(tmp_path: pathlib.Path) -> locks.ImageLocks:
    return locks.ImageLocks(str(tmp_path))


@contextlib.contextmanager
def _process(
    script: str, directory: pathlib.Path, name: str = NAME
) -> Iterator[subprocess.Popen[str]]:
    """Run a script on a lock in another process."""
    process = subprocess.Popen(
        [sys.executable, '-c', script, str(directory), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Waiting:
    """A thread that waits for a lock, with the error that stopped it."""

    def __init__(self, image_locks: locks.ImageLocks, reins: transfer_control.Control) -> None:
        self.got = threading.Event()
        self.error: Exception | None = None
        self._locks, self._control = image_locks, reins
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._locks.hold(NAME, self._control):
                self.got.set()
        except exception.CacheError as exc:
            self.error = exc

    def join(self) -> None:
        self._thread.join(TIMEOUT_SECONDS)
        assert not self._thread.is_alive()


class Registering(transfer_control.Control):
    """Reports when a thread registers for a stop, as one that waits for another thread does."""

    def __init__(self) -> None:
        super().__init__()
        self.is_waiting = threading.Event()

    @contextlib.contextmanager
    def on_stop(self, callback: object) -> Iterator[None]:
        with super().on_stop(callback):  # type: ignore[arg-type]
            self.is_waiting.set()
            yield


def test_stop_ends_wait_for_thread(image_locks: locks.ImageLocks) -> None:
    reins = Registering()
    with image_locks.hold(NAME):
        waiting_thread = Waiting(image_locks, reins)
        reins.is_waiting.wait(TIMEOUT_SECONDS)
        reins.stop(exception.Cancelled('not wanted'))
        waiting_thread.join()
    assert isinstance(waiting_thread.error, exception.Cancelled)
    assert not waiting_thread.got.is_set()


def test_stop_ends_wait_for_process(image_locks: locks.ImageLocks, tmp_path: pathlib.Path) -> None:
    reins = transfer_control.Control()
    with held_by_another_process(tmp_path, NAME) as process:
        waiting_thread = Waiting(image_locks, reins)
        wait_until(lambda: _is_open(tmp_path / f'nova-{NAME}'), 'it waits for the file')
        reins.stop(exception.Cancelled('not wanted'))
        waiting_thread.join()
        assert isinstance(waiting_thread.error, exception.Cancelled)
        assert not _is_open(tmp_path / f'nova-{NAME}')
        process.communicate()
    with image_locks.try_hold(NAME) as held:
        assert held


def test_stopped_caller_gets_no_free_lock(
    image_locks: locks.ImageLocks,
) -> None:
    reins = transfer_control.Control()
    reins.stop(exception.Cancelled('not wanted'))
    with pytest.raises(exception.Cancelled), image_locks.hold(NAME, reins):
        pass
    with image_locks.try_hold(NAME) as held:
        assert held


def test_removed_lock_file_not_held(image_locks: locks.ImageLocks, tmp_path: pathlib.Path) -> None:
    path = tmp_path / f'nova-{NAME}'
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with image_locks.hold(NAME):
            held.set()
            leave.wait(TIMEOUT_SECONDS)

    with held_by_another_process(tmp_path, NAME) as process:
        thread = threading.Thread(target=hold)
        thread.start()
        wait_until(lambda: _is_open(path), 'it waits for the file')
        path.unlink()
        process.communicate()
    assert held.wait(TIMEOUT_SECONDS)
    # A later process, which finds the file by its name, finds it locked.
    with _process(_WAITER, tmp_path) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == 'starts\n'
        wait_until(lambda: _has_open(waiter.pid, path), 'it waits for the file')
        assert waiter.poll() is None
        leave.set()
        thread.join(TIMEOUT_SECONDS)
        assert waiter.communicate()[0] == 'held\n'


def test_ever_changing_lock_file_faults_storage(
    image_locks: locks.ImageLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, 'samestat', lambda *_: False)
    with pytest.raises(exception.StorageError, match='being replaced'), image_locks.hold(NAME):
        pass


def test_remotely_removed_lock_file_replaced(
    image_locks: locks.ImageLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = os.path.samestat

    def stale(*of: os.stat_result) -> bool:
        monkeypatch.setattr(os.path, 'samestat', compare)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os.path, 'samestat', stale)
    with image_locks.hold(NAME), image_locks.try_hold(NAME) as held:
        assert not held


def test_unreadable_lock_file_faults_storage(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*of: os.stat_result) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os.path, 'samestat', refuse)
    for use in (image_locks.hold, image_locks.try_hold):
        with (
            pytest.raises(exception.StorageError, match=f'Locking {NAME} with .*: Input'),
            use(NAME),
        ):
            pass
    assert not _is_open(tmp_path / f'nova-{NAME}')
    monkeypatch.undo()
    with image_locks.try_hold(NAME) as held:
        assert held


def test_uncontended_lock_boosts_nothing(image_locks: locks.ImageLocks) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        assert not reins.is_urgent


def test_waiting_boot_raises_priority(image_locks: locks.ImageLocks) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins):
        with image_locks.priority_boost(NAME, reins):
            boot = Waiting(image_locks, transfer_control.Control(is_boot=True))
            wait_until(lambda: reins.is_urgent, 'the boot waits')
        assert not reins.is_urgent
    boot.join()
    assert boot.got.is_set()


def test_already_waiting_boot_raises_priority(image_locks: locks.ImageLocks) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins):
        with image_locks.priority_boost(NAME, reins):
            boot = Waiting(image_locks, transfer_control.Control(is_boot=True))
            wait_until(lambda: reins.is_urgent, 'the boot waits')
        with image_locks.priority_boost(NAME, reins):
            assert reins.is_urgent
    boot.join()


def test_stopped_boot_ends_priority_boost(image_locks: locks.ImageLocks) -> None:
    reins, boots = transfer_control.Control(), transfer_control.Control(is_boot=True)
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        boot = Waiting(image_locks, boots)
        wait_until(lambda: reins.is_urgent, 'the boot waits')
        boots.stop(exception.Cancelled('not wanted'))
        boot.join()
        assert not reins.is_urgent


def test_boot_of_other_cache_raises_priority(tmp_path: pathlib.Path) -> None:
    first, second = (locks.ImageLocks(str(tmp_path)) for _ in range(2))
    reins = transfer_control.Control()
    with first.hold(NAME, reins), first.priority_boost(NAME, reins):
        boot = Waiting(second, transfer_control.Control(is_boot=True))
        wait_until(lambda: reins.is_urgent, 'the boot waits')
    boot.join()


def test_waiting_precache_keeps_priority(image_locks: locks.ImageLocks) -> None:
    reins, precaching = transfer_control.Control(), Registering()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        other = Waiting(image_locks, precaching)
        precaching.is_waiting.wait(TIMEOUT_SECONDS)
        assert not reins.is_urgent
    other.join()
    assert other.got.is_set()


def test_waiting_process_boosts_until_killed(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        with _process(_WAITER, tmp_path) as waiter:
            wait_until(lambda: reins.is_urgent, 'the process waits')
            waiter.kill()
            wait_until(lambda: not reins.is_urgent, 'the process is gone')
        assert not reins.is_urgent


def test_waiting_process_boosts_until_giving_up(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins = transfer_control.Control()
    with (
        image_locks.hold(NAME, reins),
        image_locks.priority_boost(NAME, reins),
        _process(_IMPATIENT, tmp_path) as waiter,
    ):
        assert waiter.stdin is not None
        wait_until(lambda: reins.is_urgent, 'the process waits')
        waiter.stdin.write('\n')
        waiter.stdin.flush()
        wait_until(lambda: not reins.is_urgent, 'the process has given up')
        assert waiter.poll() is None


def test_boost_lasts_until_last_waiter(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins, path = transfer_control.Control(), tmp_path / f'nova-{NAME}'
    told: list[bool] = []
    with (
        image_locks.hold(NAME, reins),
        image_locks.priority_boost(NAME, reins),
        _process(_WAITER, tmp_path) as first,
    ):
        wait_until(lambda: reins.is_urgent, 'the first waits')
        with _process(_WAITER, tmp_path) as second:
            wait_until(lambda: _has_open(second.pid, path), 'the second waits')
            with reins.at_urgency(told.append):
                first.kill()
                first.wait()
                # Its end is reported at the latest with the end of another file.
                with _process(_IMPATIENT, tmp_path, NAME) as third:
                    wait_until(lambda: _has_open(third.pid, path), 'the third has it open')
                assert told == [True]
            # Two unread ends in a row count as one.
            wait_until(_all_events_are_read, 'the end of the third is told')
        wait_until(lambda: not reins.is_urgent, 'both are gone')


def test_earlier_process_neither_boosts_nor_hides(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins, path = transfer_control.Control(), tmp_path / f'nova-{NAME}'
    told: list[bool] = []
    with image_locks.hold(NAME, reins), _process(_WAITER, tmp_path) as early:
        wait_until(lambda: _has_open(early.pid, path), 'it waits')
        with image_locks.priority_boost(NAME, reins), reins.at_urgency(told.append):
            early.kill()
            early.wait()
            with _process(_WAITER, tmp_path):
                wait_until(lambda: reins.is_urgent, 'the other waits')
            wait_until(lambda: not reins.is_urgent, 'both are gone')
        assert told == [False, True, False]


def test_waiting_process_gets_lock(image_locks: locks.ImageLocks, tmp_path: pathlib.Path) -> None:
    reins = transfer_control.Control()
    with _process(_WAITER, tmp_path) as waiter:
        with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
            wait_until(lambda: reins.is_urgent, 'the process waits')
        assert waiter.communicate(timeout=TIMEOUT_SECONDS)[0] == 'starts\nheld\n'


def test_other_locks_waiter_does_not_boost(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins = transfer_control.Control()
    told: list[bool] = []
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        with reins.at_urgency(told.append):
            os.listdir(tmp_path)
            with held_by_another_process(tmp_path, OTHER_NAME) as other:
                other.communicate()
            with _process(_IMPATIENT, tmp_path):
                wait_until(lambda: reins.is_urgent, 'all before has been told')
            wait_until(lambda: not reins.is_urgent, 'the process is gone')
        assert told == [False, True, False]


def test_recreating_process_waits_for_none(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins = transfer_control.Control()
    told: list[bool] = []
    with image_locks.hold(NAME, reins):
        with image_locks.priority_boost(NAME, reins), reins.at_urgency(told.append):
            (tmp_path / f'nova-{NAME}').unlink()
            with held_by_another_process(tmp_path, NAME) as other:
                other.communicate()
        assert told == [False]
    with (
        image_locks.hold(NAME, reins),
        image_locks.priority_boost(NAME, reins),
        _process(_WAITER, tmp_path),
    ):
        wait_until(lambda: reins.is_urgent, 'the process waits')


def test_inspecting_waiters_blocks_no_process(
    image_locks: locks.ImageLocks, tmp_path: pathlib.Path
) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        with _process(_RESTLESS, tmp_path) as restless:
            assert restless.wait(TIMEOUT_SECONDS) == 0
        wait_until(lambda: not reins.is_urgent, 'the process is gone')
        with _process(_WAITER, tmp_path) as waiter:
            wait_until(lambda: reins.is_urgent, 'the lock is still held')
            assert waiter.poll() is None


def test_boost_leaves_no_files(image_locks: locks.ImageLocks, tmp_path: pathlib.Path) -> None:
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins):
        before = _open_things(tmp_path)
        for _ in range(20):
            with image_locks.priority_boost(NAME, reins):
                pass
        with pytest.raises(ValueError), image_locks.priority_boost(NAME, reins):
            raise ValueError
        left = _open_things(tmp_path) - before
    assert left == set()
    assert not reins.is_urgent


def test_boost_ends_with_removed_directory(tmp_path: pathlib.Path) -> None:
    image_locks, reins = locks.ImageLocks(str(tmp_path / 'locks')), transfer_control.Control()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        (tmp_path / 'locks' / f'nova-{NAME}').unlink()
        (tmp_path / 'locks').rmdir()
    assert not reins.is_urgent


def test_boost_ends_with_ended_watch(
    image_locks: locks.ImageLocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(lock_waiters.inotify_simple.INotify):
        """Ends a watch at once, as the kernel does when the file system is unmounted."""

        def add_watch(self, path: str, mask: int) -> int:
            watched = int(super().add_watch(path, mask))
            super().rm_watch(watched)
            return watched

    reins = transfer_control.Control()
    monkeypatch.setattr(lock_waiters.inotify_simple, 'INotify', Ending)
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        for thread in threading.enumerate():
            if thread.name == 'waiting':
                thread.join(TIMEOUT_SECONDS)
                assert not thread.is_alive()


def test_unwatchable_directory_warns_once_and_boosts(
    image_locks: locks.ImageLocks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, 'Too many open files')

    monkeypatch.setattr(lock_waiters.inotify_simple, 'INotify', refuse)
    reins = transfer_control.Control()
    for _ in range(2):
        with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
            boot = Waiting(image_locks, transfer_control.Control(is_boot=True))
            wait_until(lambda: reins.is_urgent, 'the boot waits')
        boot.join()
    assert [record.levelname for record in caplog.records] == ['WARNING']
    assert 'Too many open files' in caplog.text


def test_locks_work_without_inotify(
    image_locks: locks.ImageLocks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise AttributeError('inotify_init1')

    monkeypatch.setattr(lock_waiters.inotify_simple, 'INotify', refuse)
    reins = transfer_control.Control()
    with image_locks.hold(NAME, reins), image_locks.priority_boost(NAME, reins):
        assert not reins.is_urgent
    assert 'Function not implemented' in caplog.text


def _open_things(directory: pathlib.Path) -> set[object]:
    """Return this process's descriptors and threads, and the files of a directory."""
    return {*os.listdir('/proc/self/fd'), *threading.enumerate(), *directory.iterdir()}


def _is_open(path: pathlib.Path) -> bool:
    return _has_open(os.getpid(), path)


def _all_events_are_read() -> bool:
    """Return whether no event of this process waits in an inotify instance."""
    for descriptor in map(int, os.listdir('/proc/self/fd')):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone
            if 'inotify' in os.readlink(f'/proc/self/fd/{descriptor}'):
                unread = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
                if int.from_bytes(unread, sys.byteorder):
                    return False
    return True


def _has_open(pid: int, path: pathlib.Path) -> bool:
    directory = f'/proc/{pid}/fd'
    links = [os.path.join(directory, name) for name in os.listdir(directory)]
    return any(os.path.lexists(link) and os.path.realpath(link) == str(path) for link in links)
