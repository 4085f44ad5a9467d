# SPDX-License-Identifier: Apache-2.0
"""What can be expected to fail is logged in one line, and each transfer when it begins and ends."""

import collections
import contextlib
import os
import re
from collections.abc import Iterator

import pytest
import requests

from tests import service as doors
from tests.conftest import UploadImage
from tests.integration.conftest import API, CONDUCTORS, Changes, Deployment
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 1024**2
QUIET: Changes = {
    'DEFAULT': {'debug': False, 'service_down_time': 120},  # the killed host may start late
    'image_cache': {'precache_max_attempts': 2},
}
FULL: Changes = {
    'DEFAULT': {'debug': False},
    'image_cache': {'precache_max_attempts': 2, 'reserved_disk_bytes': 2**60},
}
_COMPUTE_LINE = re.compile(r'transfer_log .*Job (\S+) .* (begins|ended)[ ,]')


@pytest.fixture
def quiet(deployment: Deployment) -> Iterator[Deployment]:
    """A deployment that logs at the default level; the disk of its last host is full."""
    *others, full = deployment.names
    with deployment.configured(others, QUIET), deployment.configured([full], FULL):
        deployment.wait_until_hosts_are_up()  # a call of one that starts late is an attempt
        deployment.forget_logs()
        yield deployment


class Faults:
    """Requests for one image on one host each, in which something fails as it may."""

    def __init__(self, deployment: Deployment, upload_image: UploadImage) -> None:
        self._deployment = deployment
        self._service = deployment.service
        self._upload = upload_image
        self._number = 0

    def request(self, host: doors.Host) -> str:
        self._number += 1
        aggregate_id = self._service.aggregate(f'fault{self._number}', (host,))
        return self._service.cache(aggregate_id, self._upload(os.urandom(4 * MIB)))

    def wait(self, request_id: str) -> tuple[str, str | None]:
        ended = self._service.wait(request_id, timeout_seconds=120)
        return ended['status'], ended['reason']

    def refused(self, status: int) -> tuple[str, str | None]:
        self._deployment.gateway.refuse = status
        try:
            return self.wait(self.request(self._service.hosts[0]))
        finally:
            self._deployment.gateway.refuse = None

    def spoiled(self) -> tuple[str, str | None]:
        self._deployment.gateway.spoil = 10
        try:
            return self.wait(self.request(self._service.hosts[0]))
        finally:
            self._deployment.gateway.spoil = 0

    @contextlib.contextmanager
    def held(self, host: doors.Host) -> Iterator[str]:
        """Hold the download of a request within."""
        gateway = self._deployment.gateway
        before = len(gateway.downloads)
        gateway.hold(at_byte=MIB)
        try:
            request_id = self.request(host)
            wait_until(lambda: len(gateway.downloads) > before, 'the download has begun')
            yield request_id
        finally:
            gateway.release()

    def cancelled(self) -> tuple[str, str | None]:
        with self.held(self._service.hosts[0]) as request_id:
            action = f'{self._service.precache_url}/requests/{request_id}/action'
            assert requests.post(action, json={'cancel': None}, timeout=TIMEOUT_SECONDS).ok
            return self.wait(request_id)

    def killed(self, host: doors.Host) -> tuple[str, str | None]:
        with self.held(host) as request_id:
            self._deployment.kill(host.name)
        self._deployment.start(host.name)
        return self.wait(request_id)

    def without_broker(self, host: doors.Host) -> tuple[str, str | None]:
        link = self._deployment.links[host.cell]
        link.cut()
        try:
            return self.wait(self.request(host))
        finally:
            link.restore()


def test_expected_faults_log_no_traceback(quiet: Deployment, upload_image: UploadImage) -> None:
    faults = Faults(quiet, upload_image)
    first, second, _, full = quiet.service.hosts

    found = {
        'Glance away': faults.refused(503),
        'token refused': faults.refused(401),
        'image gone': faults.refused(404),
        'spoiled': faults.spoiled(),
        'disk full': faults.wait(faults.request(full)),
        'cancelled': faults.cancelled(),
        'host killed': faults.killed(second),
        'broker away': faults.without_broker(first),
    }
    quiet.wait_until_hosts_are_up()

    failed = '1 of 1 copies failed: 1 × '  # noqa: RUF001
    assert found == {
        'Glance away': ('failed', f'{failed}download interrupted'),
        'token refused': ('failed', f'{failed}token refused'),
        'image gone': ('failed', f'{failed}image not available'),
        'spoiled': ('failed', f'{failed}checksum or size mismatch'),
        'disk full': ('failed', f'{failed}not enough disk space'),
        'cancelled': ('cancelled', '1 of 1 copies cancelled'),
        'host killed': ('completed', None),
        'broker away': ('failed', f'{failed}cell unreachable'),
    }
    assert [name for name in quiet.names if 'Traceback' in quiet.log(name)] == []
    assert [line for line in _lines(quiet, API) if '"GET ' in line] == []
    assert any('"POST /v2.1/os-aggregates' in line for line in _lines(quiet, API))
    for host in (first, full):  # not the killed one
        lines = [each for line in _lines(quiet, host.name) if (each := _COMPUTE_LINE.search(line))]
        ends = collections.Counter(each[2] for each in lines)
        assert ends['begins'] == ends['ended'] > 0
    wait_until(lambda: _warnings(quiet, ' is failed: ') >= 6, 'each failure is logged')
    assert _warnings(quiet, ' ended for request ') == 6
    assert _warnings(quiet, ' is failed: ') == 6


def _warnings(deployment: Deployment, text: str) -> int:
    """Count the warnings of the conductors with a text."""
    lines = [line for name in CONDUCTORS for line in _lines(deployment, name)]
    return sum(' WARNING ' in line and text in line for line in lines)


def _lines(deployment: Deployment, name: str) -> list[str]:
    return deployment.log(name).splitlines()
