# SPDX-License-Identifier: Apache-2.0
"""The plan of the soak, and its checks."""

import hashlib
import itertools
import json
import pathlib

import pytest

from benchmarks.soak import judge, plan, site
from nova_precache.cache import layout

IMAGE_ID = '0b5f5b6c-4d0a-4a3b-9a53-0c7a3a1f0a11'
STEM = f'{layout.base_name(IMAGE_ID)}.{"0" * 32}'


def _steps(seed: int, count: int = 500) -> list[plan.Step]:
    return list(itertools.islice(plan.steps(seed, 2), count))


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> layout.CacheLayout:
    paths = layout.CacheLayout(str(tmp_path))
    pathlib.Path(paths.base_directory).mkdir()
    return paths


def _put(paths: layout.CacheLayout, name: str, data: bytes = b'') -> None:
    pathlib.Path(paths.path_of(name)).write_bytes(data)


def _image(data: bytes) -> site.SoakImage:
    digest = hashlib.sha256(data).hexdigest()
    return site.SoakImage('an image', IMAGE_ID, pathlib.Path('/nowhere'), digest)


def test_same_seed_takes_same_steps() -> None:
    assert _steps(7) == _steps(7)
    assert _steps(7) != _steps(8)


def test_every_event_happens_eventually() -> None:
    assert {step.what for step in _steps(7)} == set(plan.What)


def test_base_file_right_wrong_or_absent(paths: layout.CacheLayout) -> None:
    name = layout.base_name(IMAGE_ID)
    assert judge.is_right(_image(b'right'), paths) is None

    _put(paths, name, b'right')
    assert judge.is_right(_image(b'right'), paths) is True

    _put(paths, name, b'other')
    assert judge.wrong_files([_image(b'right')], paths) == ['an image is wrong']


def test_resumable_partial_may_stay_until_end(paths: layout.CacheLayout) -> None:
    notes = [{'version': 1}, {'synced_bytes': 4096}]
    _put(paths, f'{STEM}.part')
    _put(paths, f'{STEM}.journal', b''.join(json.dumps(note).encode() + b'\n' for note in notes))
    _put(paths, layout.base_name(IMAGE_ID), b'right')

    assert judge.leftovers(paths, finished=False) == []
    assert judge.leftovers(paths, finished=True) == [f'{STEM}.journal', f'{STEM}.part']


@pytest.mark.parametrize('names', [('part',), ('converted',), ('part', 'journal')])
def test_partial_without_journal_is_leftover(
    paths: layout.CacheLayout, names: tuple[str, ...]
) -> None:
    for name in names:
        _put(paths, f'{STEM}.{name}', b'{"version": 1}\n')

    found = judge.leftovers(paths, finished=False)

    assert found == sorted(f'{STEM}.{name}' for name in names)


def test_extra_handle_is_leaked() -> None:
    before = ['/dev/null', 'pipe:[]']

    assert judge.leaked_handles(before, [*before, '/base', '/base']) == ['2 times /base']


def test_few_connections_may_be_kept() -> None:
    assert judge.leaked_handles([], ['socket:[]'] * 8) == []
    assert judge.leaked_handles([], ['socket:[]'] * 9) == ['9 times socket:[]']


def test_memory_warming_up_is_flat() -> None:
    samples = [(float(at), 100 if at >= 25 else at) for at in range(100)]

    assert judge.growth_bytes(samples) == 0
    assert judge.slope_bytes_per_minute(samples) == 0


def test_steadily_growing_memory_found() -> None:
    samples = [(float(at), 10 * at) for at in range(100)]

    assert judge.growth_bytes(samples) == 500
    assert judge.slope_bytes_per_minute(samples) == pytest.approx(600)
