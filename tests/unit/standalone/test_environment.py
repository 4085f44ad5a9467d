# SPDX-License-Identifier: Apache-2.0
"""Environments are built once, completely or not at all; pip is real, the package tiny."""

import os
import pathlib
import platform
import subprocess
import zipfile

import pytest

from nova_precache.standalone import environment
from tests import odd_files


@pytest.fixture
def wheel(tmp_path: pathlib.Path) -> pathlib.Path:
    """A wheel with one module, so that nothing is downloaded."""
    path = tmp_path / 'pebble-1.0-py3-none-any.whl'
    metadata = 'Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n'
    tags = 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('pebble.py', 'WEIGHT = 7\n')
        archive.writestr('pebble-1.0.dist-info/METADATA', metadata)
        archive.writestr('pebble-1.0.dist-info/WHEEL', tags)
        archive.writestr('pebble-1.0.dist-info/RECORD', '')
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'nova-precache'


def test_environment_has_packages_and_builds_once(wheel: pathlib.Path, cache: pathlib.Path) -> None:
    pebble = environment.PythonEnvironment('pebble-1.0', (str(wheel),))

    path = pebble.ensure()
    (path / 'witness').touch()

    assert path == cache / f'pebble-1.0-python-{platform.python_version()}'
    command = [str(path / 'bin' / 'python'), '-c', 'import pebble; print(pebble.WEIGHT)']
    assert subprocess.check_output(command) == b'7\n'
    assert pebble.ensure() == path
    assert (path / 'witness').exists()


def test_interrupted_build_removed_first(wheel: pathlib.Path) -> None:
    pebble = environment.PythonEnvironment('pebble-1.0', (str(wheel),))
    pebble.path.mkdir(parents=True)
    (pebble.path / 'half').touch()

    pebble.ensure()

    assert not (pebble.path / 'half').exists()


def test_failed_build_named_and_incomplete(
    tmp_path: pathlib.Path,
) -> None:
    absent = tmp_path / 'absent-1.0-py3-none-any.whl'
    missing = environment.PythonEnvironment('missing-1.0', (str(absent),))

    with pytest.raises(environment.EnvironmentFailed) as failed:
        missing.ensure()

    assert '-m pip' in str(failed.value)
    assert 'absent-1.0' in str(failed.value).splitlines()[-1]
    assert not (missing.path / 'complete').exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_object_at_lock_named(cache: pathlib.Path, kind: str) -> None:
    pebble = environment.PythonEnvironment('pebble-1.0', ())
    path = cache / f'lock-pebble-1.0-python-{platform.python_version()}'
    cache.mkdir(parents=True)
    odd_files.IRREGULAR[kind](path)

    with pytest.raises(environment.EnvironmentFailed) as refusal:
        pebble.ensure()

    assert str(refusal.value).startswith(f'{path} cannot be used: it is a')


@pytest.mark.timeout(60)
def test_non_file_stamp_is_no_stamp(wheel: pathlib.Path) -> None:
    pebble = environment.PythonEnvironment('pebble-1.0', (str(wheel),))
    pebble.path.mkdir(parents=True)
    os.mkfifo(pebble.path / 'complete')

    pebble.ensure()

    assert (pebble.path / 'complete').is_file()
