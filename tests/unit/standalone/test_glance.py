# SPDX-License-Identifier: Apache-2.0
"""How a Glance that cannot start is reported, and how its access log is read.

A shell script stands in for Glance; the real one runs in the functional tests.
"""

import dataclasses
import pathlib
import socket

import pytest

from nova_precache.standalone import environment, glance, process

IMAGE = '0b5f5b6c-4d0a-4a3b-9a53-0c7a3a1f0a11'


@dataclasses.dataclass(frozen=True)
class StubEnvironment:
    """A prepared environment with the commands that the test puts in."""

    path: pathlib.Path

    def ensure(self) -> pathlib.Path:
        return self.path

    def put(self, name: str, script: str) -> None:
        command = self.path / 'bin' / name
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f'#!/bin/sh\n{script}\n')
        command.chmod(0o755)


@pytest.fixture
def stub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> StubEnvironment:
    stub = StubEnvironment(tmp_path / 'environment')
    stub.put('glance-manage', 'exit 0')
    monkeypatch.setattr(glance.GlanceServer, 'python_environment', stub)
    return stub


def test_dead_glance_reported_with_last_output(
    stub: StubEnvironment, tmp_path: pathlib.Path
) -> None:
    stub.put('gunicorn', 'echo no such paste file; exit 3')

    with pytest.raises(process.ServerFailed, match='no such paste file'):
        glance.GlanceServer(tmp_path / 'glance').start()


def test_unresponsive_glance_is_killed(
    stub: StubEnvironment, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub.put('gunicorn', 'trap "" QUIT TERM; echo $$ > "$OS_GLANCE_CONFIG_DIR/pid"; exec sleep 60')
    monkeypatch.setattr(process, 'START_SECONDS', 3)  # until it has written its pid
    monkeypatch.setattr(process, 'STOP_SECONDS', 0.1)

    with pytest.raises(process.ServerFailed, match='did not start'):
        glance.GlanceServer(tmp_path / 'glance').start()

    pid = (tmp_path / 'glance' / 'pid').read_text().strip()
    assert not pathlib.Path('/proc', pid).exists()


def test_failed_schema_reported_and_recreated(
    stub: StubEnvironment, tmp_path: pathlib.Path
) -> None:
    stub.put('glance-manage', 'echo "table is locked"; exit 1')
    server = glance.GlanceServer(tmp_path / 'glance')

    for _ in range(2):
        with pytest.raises(process.ServerFailed, match='table is locked'):
            server.start()


def test_taken_port_is_named(stub: StubEnvironment, tmp_path: pathlib.Path) -> None:
    with socket.create_server((process.HOST, 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(process.ServerFailed, match=str(port)):
            glance.GlanceServer(tmp_path, port).start()


def test_only_image_data_answers_counted(tmp_path: pathlib.Path) -> None:
    server = glance.GlanceServer(tmp_path)
    lines = [
        f'GET /v2/images/{IMAGE} 200 760 "-"',
        f'PUT /v2/images/{IMAGE}/file 204 0 "-"',
        f'GET /v2/images/{IMAGE}/file 200 1024 "-"',
        f'GET /v2/images/{IMAGE}/file 206 24 "bytes=1000-"',
        f'GET /v2/images/{IMAGE}/file 416 90 "bytes=4000-"',
        'GET /v2/images/another/file 200 1024 "-"',
    ]
    server.access_log.write_text(''.join(f'[22/Nov/2026:08:00:00 +0000] {x}\n' for x in lines))

    assert server.served(IMAGE) == 2


def test_unstarted_glance_served_nothing(tmp_path: pathlib.Path) -> None:
    assert glance.GlanceServer(tmp_path).served(IMAGE) == 0


def test_build_command_reports_failed_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def ensure(self) -> pathlib.Path:
            raise environment.EnvironmentFailed('pip could not')

    monkeypatch.setattr(glance, 'ENVIRONMENT', Broken())

    assert glance.main(['--build']) == 1
    assert 'pip could not' in capsys.readouterr().err
