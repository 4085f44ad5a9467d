# SPDX-License-Identifier: Apache-2.0
"""How commands read and reload their configuration, and notify systemd."""

import json
import logging
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from oslo_concurrency import lockutils
from oslo_config import cfg
from oslo_messaging._drivers import amqpdriver

from nova_precache import conf as configuration, exception
from nova_precache.cmd import running
from nova_precache.db.engine import session
from nova_precache.wiring import conductor as wiring_conductor, process as wiring_process
from nova_precache.wsgi import foreign
from tests.service import wait_until
from tests.unit.conftest import open_database
from tools.waiting import TIMEOUT_SECONDS

DEFAULT_FILE = '/etc/nova-precache/nova-precache.conf'


pytestmark = pytest.mark.usefixtures('root_logger_as_it_was')


@pytest.fixture
def hangups() -> Iterator[None]:
    """Restore the handler of SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A configuration file with all that a conductor and a compute need."""
    made = tmp_path / 'nova-precache.conf'
    _write(made)
    return made


def _write(path: pathlib.Path, conductor: str = '', image_cache: str = '') -> None:
    path.write_text(
        f"""\
[DEFAULT]
transport_url = fake:///running
instances_path = {path.parent}/instances
state_path = {path.parent}/state
[conductor]
{conductor}
[database]
connection = sqlite:///{path.parent}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
[image_cache]
{image_cache}
"""
    )


def _read(file: pathlib.Path) -> cfg.ConfigOpts:
    return configuration.new(config_files=[str(file)])


@pytest.mark.parametrize('program', ['nova-precache-conductor', 'gunicorn'])
def test_etc_file_is_default_configuration(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """No test writes to /etc: the error about the missing file shows that it is read."""
    monkeypatch.setattr(sys, 'argv', [program])
    is_there = {DEFAULT_FILE, '/etc/gunicorn.conf'}
    monkeypatch.setattr('os.path.exists', lambda path: path in is_there)

    with pytest.raises(cfg.ConfigFilesNotFoundError) as missed:
        running.read_configuration([]) if program.startswith('nova') else foreign.build(None)

    assert missed.value.config_files == [DEFAULT_FILE]  # and none of the server's


def test_json_log_is_an_option(file: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    running.read_configuration(['--config-file', str(file), '--use-json'])

    logging.getLogger('nova_precache').warning('It is %s', 'so')

    said = json.loads(capfd.readouterr().err)
    assert (said['message'], said['levelname']) == ('It is so', 'WARNING')


def test_libraries_see_global_configuration(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    file.write_text(f"""{file.read_text()}
[oslo_concurrency]
lock_path = {tmp_path}/named
""")

    conf = running.read_configuration(['--config-file', str(file)])
    with lockutils.lock('named', external=True):
        pass

    assert conf is cfg.CONF
    assert [path.name for path in (tmp_path / 'named').iterdir()] == ['named']


@pytest.mark.parametrize('build', ['command', 'application'])
def test_oslo_messaging_has_lock_directory(
    file: pathlib.Path, tmp_path: pathlib.Path, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build == 'command':
        running.read_configuration(['--config-file', str(file)])
    else:
        monkeypatch.setattr(sys, 'argv', ['gunicorn', '--bind', 'somewhere'])
        with pytest.raises(exception.ConfigError, match='no tables'):
            foreign.build([str(file)])
    # It checks the leader of the process group, which may have ended before the tests.
    monkeypatch.setattr(os, 'getpgrp', os.getpid)
    manager = amqpdriver.QManager('host', f'test-{uuid.uuid4()}')
    try:
        assert manager.get().endswith(':1')
    finally:
        pathlib.Path(manager.file_name).unlink(missing_ok=True)

    assert (tmp_path / 'state' / 'locks').is_dir()


def test_second_command_keeps_no_old_state(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / 'other.conf'
    other.write_text('')
    file.write_text(f'{file.read_text()}\n[oslo_concurrency]\nlock_path = {tmp_path}/named\n')

    running.read_configuration(['--config-file', str(file)])
    conf = running.read_configuration(['--config-file', str(other)])

    assert conf.oslo_concurrency.lock_path == '/var/lib/nova-precache/locks'


def test_conductor_reloads_its_files(file: pathlib.Path, database_of: session.Database) -> None:
    conf = _read(file)
    parts = wiring_conductor.ConductorParts(conf, database_of, wiring_process.exposition(conf))
    dispatch = parts.conductor()._dispatcher

    _write(
        file,
        'poll_interval_seconds = 7\nstop_timeout_seconds = 8\nclaim_lease_seconds = 99',
        """\
precache_concurrency = 3
precache_max_attempts = 4
retry_delay_seconds = 5
retry_max_delay_seconds = 6
request_retention_days = 9
""",
    )
    configuration.read_again(conf)

    assert (dispatch.limit, dispatch.poll_seconds, dispatch.stop_seconds) == (3, 7, 8)
    assert parts.announcer.poll_seconds == 7
    policy = parts.tracker.policy
    assert (policy.max_attempts, policy.delay_seconds, policy.max_delay_seconds) == (4, 5, 6)
    assert parts.breakers.rest_seconds == 5
    assert conf.image_cache.request_retention_days == 9
    assert conf.conductor.claim_lease_seconds == 30  # it needs a restart


@pytest.fixture
def database_of(database_path: pathlib.Path) -> Iterator[session.Database]:
    made = open_database(database_path)
    yield made
    made.dispose()


@pytest.mark.parametrize(
    'value', ['precache_concurrency = 0', 'precache_concurrency = many', '[no end']
)
def test_invalid_value_ignored_until_corrected(file: pathlib.Path, value: str) -> None:
    conf = _read(file)

    _write(file, image_cache=f'request_retention_days = 5\n{value}')
    with pytest.raises(cfg.Error):
        configuration.read_again(conf)

    assert conf.image_cache.precache_concurrency == 1
    assert conf.image_cache.request_retention_days == 30
    _write(file, image_cache='precache_concurrency = 2')
    configuration.read_again(conf)
    assert conf.image_cache.precache_concurrency == 2


@pytest.mark.usefixtures('hangups')
def test_signal_reloads_files_and_reports_errors(
    file: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    conf = _read(file)
    running.reload_on_sighup(conf)

    _write(file, image_cache='precache_concurrency = none')
    signal.raise_signal(signal.SIGHUP)
    wait_until(lambda: 'Reloading the configuration failed' in caplog.text, 'it is refused')
    _write(file, image_cache='precache_concurrency = 5')
    signal.raise_signal(signal.SIGHUP)
    wait_until(lambda: conf.image_cache.precache_concurrency == 5, 'it is read')

    assert 'precache_concurrency' in caplog.text


def test_systemd_notified_after_start(tmp_path: pathlib.Path) -> None:
    code = (
        'import types; from nova_precache.cmd import running\n'
        'part = types.SimpleNamespace(start=lambda: print("started", flush=True),\n'
        '                             stop=lambda: print("stopped", flush=True))\n'
        'running.run([part])'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / 'notify'))
        notified.settimeout(TIMEOUT_SECONDS)
        with subprocess.Popen(
            [sys.executable, '-c', code],
            stdout=subprocess.PIPE,
            env={'NOTIFY_SOCKET': str(tmp_path / 'notify')},
        ) as process:
            try:
                assert notified.recv(100) == b'READY=1'
                process.terminate()
                said, _ = process.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                process.kill()

    assert (said, process.returncode) == (b'started\nstopped\n', 0)


def test_failing_stop_does_not_block_others() -> None:
    """Nor does it wait for a busy thread, such as a pool's."""
    code = """\
import os, signal, threading, types
from nova_precache.cmd import running

def fail():
    raise OSError('no database')

def ready():
    threading.Thread(target=threading.Event().wait).start()
    os.kill(os.getpid(), signal.SIGTERM)

first = types.SimpleNamespace(start=lambda: None, stop=lambda: print('stopped', flush=True))
failing = types.SimpleNamespace(start=lambda: None, stop=fail)

def main():
    running.run([first, failing], ready=ready)
    raise OSError('no database')

running.exit_with(main)
"""
    ended = subprocess.run(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, timeout=TIMEOUT_SECONDS, check=False
    )

    assert (ended.stdout, ended.returncode) == (b'stopped\n', 1)


def test_signal_ends_conductor_with_unreadable_database(
    file: pathlib.Path, tmp_path: pathlib.Path, database_of: session.Database
) -> None:
    # A query without a table, such as that of the time, would find the database available again.
    _write(file, 'poll_interval_seconds = 3600\nheartbeat_write_interval_seconds = 3600')
    at = database_of.engine.url.render_as_string(hide_password=False)
    file.write_text(file.read_text().replace(f'sqlite:///{tmp_path}/precache.sqlite', at))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / 'notify'))
        notified.settimeout(TIMEOUT_SECONDS)
        with subprocess.Popen(
            [
                sys.executable,
                '-c',
                'from nova_precache.cmd import conductor; conductor.main()',
                '--config-file',
                str(file),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={'NOTIFY_SOCKET': str(tmp_path / 'notify')},
        ) as process:
            try:
                assert notified.recv(100) == b'READY=1'
                pathlib.Path(str(database_of.engine.url.database)).write_bytes(b'junk' * 4096)
                process.terminate()
                _, said = process.communicate(timeout=TIMEOUT_SECONDS)
            finally:
                process.kill()

    assert process.returncode == 0, said
    assert 'Traceback' not in said
    away = [line for line in said.splitlines() if 'Database of [database] connection' in line]
    assert 1 <= len(away) <= 2, said  # each other kind of error has a line of its own
    assert all(re.search(r' is unavailable( for \d+ s)?: ', line) for line in away), said
    assert 'has stopped' in said.splitlines()[-1]
