# SPDX-License-Identifier: Apache-2.0
"""The commands start and stop; each reports an unusable setting in one line and exits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import requests

from nova_precache import backend
from tests.conftest import THREADS, needs_eventlet
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS


def _command(command: str, *arguments: object) -> list[str]:
    code = f'from nova_precache.cmd import {command}; {command}.main()'
    return [sys.executable, '-c', code, *map(str, arguments)]


def _environment(threads: str = '') -> dict[str, str]:
    return {**os.environ, backend.VARIABLE: threads}


def _run(command: str, *arguments: object, threads: str = '') -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(command, *arguments),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=_environment(threads),
    )


@pytest.mark.parametrize(
    ('command', 'threads', 'option', 'variable'),
    [
        ('api', 'threading', '', ''),
        pytest.param('api', 'eventlet', '', 'eventlet', marks=needs_eventlet),
        ('conductor', 'threading', 'concurrency_backend = eventlet', 'threading'),
        pytest.param(
            'conductor', 'eventlet', 'concurrency_backend = eventlet', '', marks=needs_eventlet
        ),
    ],
)
def test_services_run_chosen_threads_and_stop(
    database_path: pathlib.Path,
    free_port: Callable[[], int],
    command: str,
    threads: str,
    option: str,
    variable: str,
) -> None:
    port = free_port()
    conf = database_path.parent / 'nova-precache.conf'
    conf.write_text(
        f"""\
[DEFAULT]
{option}
transport_url = fake:///
[api]
auth_strategy = noauth2
bind_port = {port}
[database]
connection = sqlite:///{database_path}
[glance]
endpoint_override = http://127.0.0.1:1
"""
    )

    log = conf.parent / 'log'

    def runs() -> bool:
        if command == 'conductor':
            return ' runs' in log.read_text()
        try:
            return requests.get(f'http://127.0.0.1:{port}/', timeout=TIMEOUT_SECONDS).ok
        except requests.ConnectionError:
            return False

    started = _command(command, '--config-file', conf, '--use-json')
    with (
        log.open('w') as said,
        subprocess.Popen(started, stderr=said, env=_environment(variable)) as process,
    ):
        try:
            wait_until(runs, f'{command} runs')
            process.send_signal(signal.SIGTERM)
            status = process.wait(TIMEOUT_SECONDS)
        finally:
            process.kill()

    assert status == 0, log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert f'Concurrency backend: {threads}' in {line['message'] for line in lines}
    assert {line['levelname'] for line in lines} == {'INFO'}


@pytest.mark.parametrize('threads', THREADS)
def test_signal_wakes_idle_process(threads: str) -> None:
    code = (
        'from nova_precache import backend; backend.choose_by_environment()\n'
        'from nova_precache.cmd import running; import threading\n'
        # A green thread starts when the process waits.
        'told = threading.Thread(target=print, args=("waits",), kwargs={"flush": True})\n'
        'running.run([], ready=told.start)'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, env=_environment(threads)
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b'waits\n'
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_SECONDS) == 0  # eventlet's hub sleeps for 60 s
        finally:
            process.kill()


@pytest.mark.parametrize('threads', THREADS)
def test_signal_before_wait_ends_process(threads: str) -> None:
    code = (
        'from nova_precache import backend; backend.choose_by_environment()\n'
        'from nova_precache.cmd import running; import os, signal, sys, threading\n'
        'def at_a_line(frame, event, argument):\n'
        '    if event == "line" and "signaled" in frame.f_locals:  # it holds the lock\n'
        '        sys.settrace(None)\n'
        '        os.kill(os.getpid(), signal.SIGTERM)\n'
        '    return at_a_line\n'
        'waits = threading.Event.wait.__code__\n'
        'at_a_call = lambda frame, *_: at_a_line if frame.f_code is waits else None\n'
        'running.run([], ready=lambda: sys.settrace(at_a_call))\n'
        'print(sys.gettrace())'
    )
    ended = subprocess.run(
        [sys.executable, '-c', code],
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_SECONDS,
        check=False,
        env=_environment(threads),
    )

    assert (ended.returncode, ended.stdout) == (0, b'None\n')


@pytest.mark.parametrize('pool', ['futurist', 'concurrent.futures'])
def test_command_exits_despite_busy_thread(pool: str) -> None:
    code = (
        f'import threading, {pool}; from nova_precache.cmd import running\n'
        'works = threading.Event()\n'
        'def work():\n'
        '    works.set()\n'
        '    threading.Event().wait()\n'
        'def main():\n'
        f'    {pool}.ThreadPoolExecutor(1).submit(work)\n'
        '    works.wait()\n'
        '    print("done")\n'
        '    return 3\n'
        'running.exit_with(main)'
    )

    ended = subprocess.run(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False
    )

    assert (ended.returncode, ended.stdout) == (3, b'done\n')


@pytest.mark.parametrize('command', ['compute', 'standalone'])
def test_native_thread_services_refuse_eventlet(tmp_path: pathlib.Path, command: str) -> None:
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text('[DEFAULT]\nconcurrency_backend = eventlet\n')
    reason = f'eventlet: nova-precache-{command} runs with native threads only'

    by_option = _run(command, '--config-file', conf)
    by_variable = _run(command, threads='eventlet')

    assert (by_option.returncode, by_variable.returncode) == (1, 1)
    assert by_option.stderr == f'[DEFAULT] concurrency_backend = {reason}\n'
    assert by_variable.stderr == f'NOVA_PRECACHE_CONCURRENCY = {reason}\n'


@pytest.mark.parametrize('command', ['conductor', 'compute'])
def test_unknown_threads_reported_in_one_line(command: str) -> None:
    ended = _run(command, threads='gevent')

    assert ended.returncode == 1
    assert ended.stderr == (
        'NOVA_PRECACHE_CONCURRENCY = gevent: it must be threading or eventlet\n'
    )


@pytest.mark.parametrize(
    ('command', 'database', 'said'),
    [
        ('manage', '', '[database] connection is not set'),
        ('manage', 'connection = sqlite:////dev/null/x.sqlite', 'unable to open database file'),
        ('manage', 'connection = sqlite:///{directory}/x.sqlite', 'nova-precache-manage db sync'),
        ('api', 'connection = sqlite:///{directory}/x.sqlite', 'nova-precache-manage db sync'),
        (
            'conductor',
            'connection = sqlite:///{directory}/x.sqlite',
            'nova-precache-manage db sync',
        ),
    ],
)
def test_unusable_database_reported_in_one_line(
    tmp_path: pathlib.Path, command: str, database: str, said: str
) -> None:
    conf = tmp_path / 'nova-precache.conf'
    conf.write_text('[database]\n' + database.format(directory=tmp_path))

    arguments = ('host', 'list') if command == 'manage' else ()
    ended = _run(command, '--config-file', conf, *arguments)

    assert ended.returncode == 1
    assert said in ended.stderr.splitlines()[-1]
    assert 'Traceback' not in ended.stderr


def test_file_as_state_directory_reported(tmp_path: pathlib.Path) -> None:
    path = tmp_path / 'file'
    path.touch()

    ended = _run('standalone', '--state-dir', path)

    assert ended.returncode == 1
    assert f'--state-dir {path} cannot be used: {path}: File exists' in ended.stderr
    assert 'Traceback' not in ended.stderr
