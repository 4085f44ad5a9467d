# SPDX-License-Identifier: Apache-2.0
"""The whole service in this process, in front of a real Glance on a link that tests control."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from nova_precache.standalone import glance as glance_server, service as standalone
from tests import gateway as site_link, service

Options = dict[str, dict[str, Any]]

QUICK: Options = {
    'DEFAULT': {'report_interval': 1},
    'conductor': {
        'poll_interval_seconds': 0.2,
        'progress_write_interval_seconds': 0.2,
        'heartbeat_write_interval_seconds': 0.25,
    },
    # On a busy machine, tests may hold a download for long.
    'glance': {'connect_timeout_seconds': 600, 'read_timeout_seconds': 600},
    'image_cache': {
        'retry_delay_seconds': 0.2,
        'reserved_disk_bytes': 0,
        'stall_seconds': 600,
    },
}


@pytest.fixture(scope='session', autouse=True)
def _no_secret_is_told(secrets_kept: None) -> None:
    """Search everything that these tests wrote, after every process has stopped."""


@pytest.fixture
def gateway(glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    """The site's link to Glance, open and fast unless a test changes it."""
    with site_link.Gateway(glance.url) as link:
        yield link


@dataclasses.dataclass
class Started:
    """A standalone that runs in this process, and its API client and configuration."""

    standalone: standalone.Standalone
    service: service.Service
    conf: str

    def stop(self) -> None:
        self.standalone.stop()


class Start(Protocol):
    """Start a standalone with extra options; see :func:`start`."""

    def __call__(self, **options: dict[str, Any]) -> Started: ...


@pytest.fixture
def start(tmp_path: pathlib.Path, gateway: site_link.Gateway) -> Iterator[Start]:
    """Return a function that starts a standalone, repeatedly on one state directory."""
    with starting(tmp_path, gateway.url) as begin:
        yield begin
        gateway.release()


@contextlib.contextmanager
def starting(directory: pathlib.Path, image_url: str) -> Iterator[Start]:
    """Yield a function like :func:`start`, and stop at the end what it started."""
    running: list[Started] = []

    def begin(**options: dict[str, Any]) -> Started:
        conf = directory / 'options.conf'
        conf.write_text(_render(options))
        shape = standalone.Shape(
            state_dir=directory / 'state', port=0, image_url=image_url, config_files=[str(conf)]
        )
        whole = standalone.Standalone(shape)
        whole.start()
        ready = json.loads(whole.ready_file.read_text())
        hosts = tuple(service.Host(**host) for host in ready['hosts'])
        doors = service.Service(ready['compute_url'], ready['precache_url'], hosts)
        running.append(Started(whole, doors, ready['conf']))
        return running[-1]

    try:
        yield begin
    finally:
        for started in running:
            started.stop()


def _render(options: Options) -> str:
    groups = {name: dict(values) for name, values in QUICK.items()}
    for name, values in options.items():
        groups.setdefault(name, {}).update(values)
    return '\n'.join(
        f'[{name}]\n' + '\n'.join(f'{key} = {value}' for key, value in values.items())
        for name, values in groups.items()
    )
