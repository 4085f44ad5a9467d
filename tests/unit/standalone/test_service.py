# SPDX-License-Identifier: Apache-2.0
"""What standalone does with its state directory before it starts anything."""

import pathlib
import stat
from typing import NoReturn

import pytest
from oslo_config import cfg

from nova_precache import exception
from nova_precache.db.engine import session
from nova_precache.standalone import glance, service
from tests import odd_files


class StartedGlance(exception.PrecacheError):
    """Standalone reached the start of its Glance."""


class ReadConfiguration(exception.PrecacheError):
    """Standalone has read its configuration."""


@pytest.fixture
def glance_ports(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ports on which a Glance was to be started; none starts."""
    ports: list[int] = []

    def start(server: glance.GlanceServer) -> NoReturn:
        ports.append(server.port)
        raise StartedGlance

    monkeypatch.setattr(glance.GlanceServer, 'start', start)
    return ports


def _start(state_dir: pathlib.Path) -> None:
    with pytest.raises(StartedGlance):
        service.Standalone(service.Shape(state_dir)).start()


def test_only_owner_can_read_state_directory(
    tmp_path: pathlib.Path, glance_ports: list[int]
) -> None:
    _start(tmp_path / 'state')

    assert stat.S_IMODE((tmp_path / 'state').stat().st_mode) == 0o700


def test_uncreatable_state_directory_names_option(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / 'file').touch()

    with pytest.raises(exception.ConfigError, match=r'^--state-dir .*/file/state cannot be used'):
        service.Standalone(service.Shape(tmp_path / 'file' / 'state')).start()


def test_api_chooses_free_port_itself(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process could take one that was chosen before the API listens."""

    def connect(conf: cfg.ConfigOpts) -> NoReturn:
        raise ReadConfiguration(conf.api.bind_port)

    monkeypatch.setattr(session, 'connect', connect)
    with pytest.raises(ReadConfiguration, match=r'^0$'):
        service.Standalone(service.Shape(tmp_path, port=0, image_url='http://[::1]')).start()


def test_glance_port_is_kept(tmp_path: pathlib.Path, glance_ports: list[int]) -> None:
    _start(tmp_path)
    _start(tmp_path)

    first, second = glance_ports
    assert first == second


@pytest.mark.parametrize('content', [b'', b'nonsense', b'\xff'])
def test_unreadable_glance_port_replaced(
    tmp_path: pathlib.Path, glance_ports: list[int], content: bytes
) -> None:
    kept = tmp_path / 'glance.port'
    kept.write_bytes(content)

    _start(tmp_path)

    assert glance_ports == [int(kept.read_text())]


@pytest.mark.timeout(60)
@pytest.mark.parametrize('kind', odd_files.IRREGULAR)
def test_object_at_lock_named(tmp_path: pathlib.Path, kind: str) -> None:
    odd_files.IRREGULAR[kind](tmp_path / 'lock')

    with pytest.raises(exception.ConfigError) as refusal:
        service.Standalone(service.Shape(tmp_path)).start()

    named = f'--state-dir {tmp_path} cannot be used: {tmp_path}/lock: it is a'
    assert str(refusal.value).startswith(named)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    'put',
    [
        *odd_files.DAMAGED.values(),
        *(put for kind, put in odd_files.IRREGULAR.items() if kind != 'a directory'),
        lambda path: path.write_text('0'),
        lambda path: path.write_text('-5'),
        lambda path: path.write_text('65536'),
    ],
)
def test_invalid_port_is_replaced(
    tmp_path: pathlib.Path, glance_ports: list[int], put: odd_files.Put
) -> None:
    put(tmp_path / 'glance.port')

    _start(tmp_path)
    _start(tmp_path)

    first, second = glance_ports
    assert 0 < first == second < 65536


def test_directory_at_port_file_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / 'glance.port').mkdir()

    with pytest.raises(exception.ConfigError, match=r'cannot be used: .*: Is a directory'):
        service.Standalone(service.Shape(tmp_path)).start()
