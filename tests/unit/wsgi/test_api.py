# SPDX-License-Identifier: Apache-2.0
"""The application for other WSGI servers is built from a file, and never for noauth2."""

import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import webob

from nova_precache import backend, exception
from tests import unclosed
from tests.conftest import needs_eventlet
from tools.waiting import TIMEOUT_SECONDS

MODULE = 'nova_precache.wsgi.api'


pytestmark = pytest.mark.usefixtures('root_logger_as_it_was')


@pytest.fixture
def directory(database_path: pathlib.Path) -> pathlib.Path:
    """A directory with a synced database."""
    return database_path.parent


def _import(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path, strategy: str) -> Any:
    monkeypatch.setenv('NOVA_PRECACHE_CONFIG_FILE', str(_configure(directory, strategy)))
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    return importlib.import_module(MODULE)


def _configure(directory: pathlib.Path, strategy: str, threads: str = '') -> pathlib.Path:
    conf = directory / 'nova-precache.conf'
    conf.write_text(
        f"""\
[DEFAULT]
transport_url = fake:///wsgi
{threads}
[api]
auth_strategy = {strategy}
[database]
connection = sqlite:///{directory}/precache.sqlite
[glance]
endpoint_override = http://127.0.0.1:1
[keystone_authtoken]
auth_type = none
endpoint = http://127.0.0.1:1
"""
    )
    return conf


def test_application_lists_versions_and_closes_database(
    monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path
) -> None:
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr('atexit.register', at_exit.append)
    module = _import(monkeypatch, directory, 'keystone')

    answer = webob.Request.blank('/').get_response(module.application)

    assert answer.status_int == 200
    assert {version['id'] for version in answer.json['versions']} >= {'v2.1'}
    assert unclosed.databases(directory)
    for close in reversed(at_exit):
        close()
    assert not unclosed.databases(directory)


@needs_eventlet
def test_application_uses_configured_threads(
    directory: pathlib.Path,
) -> None:
    conf = _configure(directory, 'keystone', 'concurrency_backend = eventlet')
    code = f'import {MODULE}; from nova_precache import backend; print(backend.current())'

    ran = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=True,
        env={**os.environ, 'NOVA_PRECACHE_CONFIG_FILE': str(conf), backend.VARIABLE: ''},
    )

    assert ran.stdout.splitlines()[-1] == 'eventlet'
    assert 'Concurrency backend: eventlet' in ran.stdout


def test_noauth2_refused_under_unknown_address(
    monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path
) -> None:
    with pytest.raises(exception.ConfigError, match='cannot check where its WSGI server listens'):
        _import(monkeypatch, directory, 'noauth2')


def test_unsynced_database_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(exception.ConfigError, match='run nova-precache-manage db sync'):
        _import(monkeypatch, tmp_path, 'keystone')
