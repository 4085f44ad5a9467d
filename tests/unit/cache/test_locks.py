# SPDX-License-Identifier: Apache-2.0
"""Who waits for whom: threads, processes, and hosts that share one process."""

import os
import pathlib
import threading

import pytest

from nova_precache import exception
from nova_precache.cache import locks
from tests.unit.cache.conftest import held_by_another_process

NAME = 'd45dc8a0f9f8ba9b7ea3a7e4a0c3c57c5de0d9d5'


def test_the_lock_file_has_the_name_that_nova_uses(tmp_path: pathlib.Path) -> None:
    with locks.ImageLocks(str(tmp_path)).hold(NAME):
        assert os.listdir(tmp_path) == [f'nova-{NAME}']


def test_a_lock_that_is_free_is_taken(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    for _ in range(2):
        with image_locks.try_hold(NAME) as held:
            assert held


def test_a_lock_of_a_thread_is_not_taken(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    with image_locks.hold(NAME), image_locks.try_hold(NAME) as held:
        assert not held


def test_caches_of_one_process_that_share_a_directory_share_its_locks(
    tmp_path: pathlib.Path,
) -> None:
    first, second = (locks.ImageLocks(str(tmp_path)) for _ in range(2))
    with first.hold(NAME), second.try_hold(NAME) as held:
        assert not held


def test_hosts_of_one_process_do_not_wait_for_each_other(tmp_path: pathlib.Path) -> None:
    first, second = (locks.ImageLocks(str(tmp_path / name)) for name in 'ab')
    with first.hold(NAME), second.try_hold(NAME) as held:
        assert held


def test_a_lock_of_another_process_is_not_taken_and_waited_for(tmp_path: pathlib.Path) -> None:
    image_locks = locks.ImageLocks(str(tmp_path))
    got = threading.Event()

    def wait() -> None:
        with image_locks.hold(NAME):
            got.set()

    with held_by_another_process(tmp_path, NAME) as process:
        with image_locks.try_hold(NAME) as held:
            assert not held
        waiting = threading.Thread(target=wait)
        waiting.start()
        # The lock file is open in this process as soon as the thread waits for it.
        while not _is_open(tmp_path / f'nova-{NAME}'):
            waiting.join(0.01)
        assert not got.is_set()
        process.communicate()
    waiting.join(20)
    assert got.is_set()


def test_a_directory_that_cannot_be_used_is_a_fault_of_the_storage(
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


def test_an_error_within_is_not_changed(tmp_path: pathlib.Path) -> None:
    with (
        pytest.raises(FileNotFoundError),
        locks.ImageLocks(str(tmp_path)).hold(NAME),
    ):
        raise FileNotFoundError


def _is_open(path: pathlib.Path) -> bool:
    links = [os.path.join('/proc/self/fd', name) for name in os.listdir('/proc/self/fd')]
    return any(os.path.lexists(link) and os.path.realpath(link) == str(path) for link in links)
