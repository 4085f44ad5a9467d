# SPDX-License-Identifier: Apache-2.0
"""Space is reserved before it is written, and what was written counts once."""

import errno
import os
import pathlib

import pytest

from nova_precache import exception, files
from tests.unit.cache.conftest import Cache, Refusal

IMAGE_ID = '155d900f-4e14-4e4c-a73d-069cbf4541e6'
MIB = 1024**2


def test_cache_size_measured_on_disk(cache: Cache) -> None:
    path = cache.base_file(IMAGE_ID)
    with path.open('wb') as file:
        file.write(os.urandom(MIB))
        file.truncate(100 * MIB)
        os.fsync(file.fileno())
    assert MIB <= cache.space.cache_bytes() < 2 * MIB
    assert cache.space.free_bytes() > 0


def test_excess_space_refused_with_both_numbers(cache: Cache) -> None:
    free = cache.space.free_bytes()
    with (
        pytest.raises(
            exception.NotEnoughSpace, match=rf'needs .* free in {cache.paths.base_directory}$'
        ),
        cache.space.reserve(2 * free, []),
    ):
        pass


def test_reserve_stays_free(cache: Cache) -> None:
    careful = Cache(cache.paths, reserved_bytes=cache.space.free_bytes()).space
    with pytest.raises(exception.NotEnoughSpace), careful.reserve(100 * MIB, []):
        pass


def test_reservations_add_up_until_released(cache: Cache) -> None:
    half = int(cache.space.free_bytes() * 0.6)
    with (
        cache.space.reserve(half, []),
        pytest.raises(exception.NotEnoughSpace),
        cache.space.reserve(half, []),
    ):
        pass
    with cache.space.reserve(half, []):
        pass


def test_reservation_grows_up_to_free_space(cache: Cache) -> None:
    with cache.space.reserve(MIB, []) as reservation:
        reservation.require(2 * MIB)
        assert reservation.outstanding_bytes() == 2 * MIB
        with pytest.raises(exception.NotEnoughSpace):
            reservation.require(cache.space.free_bytes() * 2)


def test_reservation_can_shrink(cache: Cache) -> None:
    with cache.space.reserve(2 * MIB, []) as reservation:
        reservation.require(MIB)
        assert reservation.outstanding_bytes() == MIB


def test_written_bytes_release_reservation(cache: Cache, tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    with cache.space.reserve(4 * MIB, [str(path)]) as reservation:
        path.write_bytes(os.urandom(3 * MIB))
        files.synchronise(path)
        assert reservation.outstanding_bytes() <= MIB


def test_unreadable_written_file_faults_storage(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        cache.space.reserve(1, [cache.paths.path_of('written')]) as space,
        monkeypatch.context() as patched,
    ):
        Refusal(patched, 'lstat', errno.ESTALE).is_on = True
        with pytest.raises(exception.StorageError, match=os.strerror(errno.ESTALE)):
            space.require(2)


def test_holes_release_reservation(cache: Cache) -> None:
    with cache.space.reserve(4 * MIB, [], lambda: 3 * MIB) as reservation:
        assert reservation.outstanding_bytes() == MIB


def test_kept_bytes_need_no_space(cache: Cache) -> None:
    size = 2 * cache.space.free_bytes()
    with cache.space.reserve(size, [], lambda: size - MIB) as reservation:
        assert reservation.outstanding_bytes() == MIB
