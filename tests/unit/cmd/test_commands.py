# SPDX-License-Identifier: Apache-2.0
"""The commands with what they cannot use: each says so in a line and leaves."""

import pathlib
import subprocess
import sys

import pytest


def _run(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = f'from nova_precache.cmd import {command}; {command}.main()'
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ('command', 'database', 'said'),
    [
        ('manage', '', '[database] connection is not set'),
        ('manage', 'connection = sqlite:////nonexistent/x.sqlite', 'unable to open database file'),
        ('manage', 'connection = sqlite:///{directory}/x.sqlite', 'nova-precache-manage db sync'),
        ('api', 'connection = sqlite:///{directory}/x.sqlite', 'nova-precache-manage db sync'),
        (
            'conductor',
            'connection = sqlite:///{directory}/x.sqlite',
            'nova-precache-manage db sync',
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_told_in_a_line(
    tmp_path: pathlib.Path, command: str, database: str, said: str
) -> None:
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text('[database]\n' + database.format(directory=tmp_path))

    arguments = ('host', 'list') if command == 'manage' else ()
    ended = _run(command, '--config-file', conf, *arguments)

    assert ended.returncode == 1
    assert said in ended.stderr.splitlines()[-1]
    assert 'Traceback' not in ended.stderr


def test_a_state_directory_that_is_a_file_is_told_in_a_line(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    path.touch()

    ended = _run('standalone', '--state-dir', path)

    assert ended.returncode == 1
    assert f'--state-dir {path} cannot be used: File exists' in ended.stderr
    assert 'Traceback' not in ended.stderr
