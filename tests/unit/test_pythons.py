# SPDX-License-Identifier: Apache-2.0
"""The set-up takes a tested Python, wherever it is, and reports when there is none."""

import ast
import configparser
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tools.waiting import TIMEOUT_SECONDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMON = ROOT / 'tools' / 'common.sh'
REAL = pathlib.Path(sys.executable)
# Passes for another version: it is queried by a program on its standard input.
_AS = """\
#!/bin/sh
[ "$1" = --version ] && echo "Python {version}.0" && exit
shift
(echo 'import sys; sys.version_info = tuple(map(int, "{version}.0".split(".")))'; cat) |
    {real} - "$@"
"""
# As pyenv leaves it in PATH for a version that is not selected.
_SHIM = '#!/bin/sh\necho "pyenv: $0: command not found" >&2\nexit 127\n'


@pytest.fixture
def machine(tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory that is all of PATH, without a Python so far."""
    path = tmp_path / 'bin'
    path.mkdir()
    for tool in ('bash', 'cat', 'dirname', 'sh', 'tac'):
        (path / tool).symlink_to(str(shutil.which(tool)))
    return path


def _put(path: pathlib.Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def _python(path: pathlib.Path, version: str) -> str:
    return _put(path, _AS.format(version=version, real=REAL))


def _shell(machine: pathlib.Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    script = machine.parent / 'tools' / 'common.sh'
    # The Python of the system comes after that of PATH; here there is none.
    _put(script, COMMON.read_text().replace('/usr/bin/python', '/nowhere/python'))
    return subprocess.run(
        ['bash', '-c', f'source {script}; {code}'],
        env={'PATH': str(machine), **variables},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def _named() -> list[str]:
    found = re.search(r'^PYTHONS=\((.*)\)$', COMMON.read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_tested_pythons_named_ones() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    classified = re.findall(r'Python :: (3\.\d+)$', setup['metadata']['classifiers'], re.MULTILINE)

    assert _named() == classified
    assert setup['metadata']['python_requires'] == f'>={classified[0]}'
    assert f'Python {classified[0]} to {classified[-1]}' in (ROOT / 'README.rst').read_text()


def test_broken_python_falls_back_to_pyenv(machine: pathlib.Path, tmp_path: pathlib.Path) -> None:
    _put(machine / 'python3.12', _SHIM)
    _put(machine / 'pyenv', f'#!/bin/sh\necho {tmp_path}/pyenv\n')
    there = _python(tmp_path / 'pyenv/versions/3.12.1/bin/python3.12', '3.12')

    assert _shell(machine, 'find_version 3.12').stdout.split() == [there]
    assert _shell(machine, 'find_version 3.13').returncode == 1


def test_tested_python_precedes_newer_default(
    machine: pathlib.Path,
) -> None:
    _python(machine / 'python3', '3.15')
    older, newer = (_python(machine / f'python{each}', each) for each in ('3.11', '3.13'))

    ran = _shell(machine, 'find_python')

    assert (ran.stdout.split(), ran.stderr) == ([newer], '')
    assert older != newer


def test_newer_python_used_with_warning(
    machine: pathlib.Path,
) -> None:
    newer = _python(machine / 'python3', '3.15')

    ran = _shell(machine, 'find_python')

    assert ran.stdout.split() == [newer]
    assert ran.stderr == (
        f'== Untested with Python 3.15.0; tested with Python {" ".join(_named())}\n'
    )


def test_older_python_not_used(machine: pathlib.Path) -> None:
    _python(machine / 'python3', '3.10')

    assert _shell(machine, 'find_python').returncode == 1


def test_missing_requested_version_named(machine: pathlib.Path) -> None:
    ran = _shell(machine, 'make_venv', NOVA_PRECACHE_PYTHON='3.12')

    assert (ran.returncode, ran.stderr) == (
        1,
        'No Python 3.12 was found (NOVA_PRECACHE_PYTHON).\n',
    )


def test_each_version_has_own_environment(
    machine: pathlib.Path,
) -> None:
    ran = _shell(machine, 'echo "${VENV##*/}"', NOVA_PRECACHE_PYTHON='3.12')
    default = _shell(machine, 'echo "${VENV##*/}"')

    assert (ran.stdout, default.stdout) == ('.venv-3.12\n', '.venv\n')


def test_no_class_inherits_from_thread() -> None:
    threads = [
        f'{path.relative_to(ROOT)}: {node.name}'
        for path in (ROOT / 'nova_precache').rglob('*.py')
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        if {'Thread', 'threading.Thread', 'Timer', 'threading.Timer'}
        & set(map(ast.unparse, node.bases))
    ]

    assert threads == []
