# SPDX-License-Identifier: Apache-2.0
"""Received bytes are not fetched again: after cuts, restarts and kills a download resumes."""

import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterator

import pytest
import requests

from nova_precache.standalone import glance as glance_server
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.integration.conftest import Deployment
from tests.service import Host, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
# A compute records the bytes on its disk every 64 MiB.
NOTED_BYTES = 64 * MIB
LARGE_BYTES = 80 * MIB


@pytest.fixture
def host(deployment: Deployment) -> Host:
    return deployment.hosts[0]


def test_cut_download_resumes_at_its_byte(
    deployment: Deployment, host: Host, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    deployment.gateway.cuts += [MIB + 1, MIB]

    _cache(deployment, host, image_id)

    assert _ranges(deployment, image_id) == [
        (200, None),
        (206, f'bytes={MIB + 1}-'),
        (206, f'bytes={2 * MIB + 1}-'),
    ]
    assert _served_bytes(deployment, image_id) == len(data)
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def test_full_answer_to_range_starts_over(
    deployment: Deployment,
    host: Host,
    upload_image: UploadImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    asked = _without_ranges(deployment.gateway, monkeypatch)
    deployment.gateway.cuts += [3 * MIB]

    _cache(deployment, host, image_id)

    assert asked == [None, f'bytes={3 * MIB}-']
    assert _ranges(deployment, image_id) == [(200, None), (200, None)]
    assert _served_bytes(deployment, image_id) == (3 + 4) * MIB
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def test_store_without_ranges_read_from_start(
    deployment: Deployment,
    host: Host,
    upload_image: UploadImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    _refuse_ranges(deployment.gateway, monkeypatch)
    deployment.gateway.cuts += [3 * MIB]

    _cache(deployment, host, image_id)

    asked = [each for each in deployment.gateway.downloads if each.image_id == image_id]
    assert [(each.status, each.requested_range) for each in asked] == [
        (200, None),
        (400, f'bytes={3 * MIB}-'),
        (200, None),
    ]
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def _refuse_ranges(gateway: site_link.Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the link answer like a Glance with RBD: whole images, and HTTP 400 to a range."""
    serve = gateway.serve

    def serve_whole_only(handler: http.server.BaseHTTPRequestHandler) -> None:
        is_part = 'Range' in handler.headers
        monkeypatch.setattr(gateway, 'refuse', http.HTTPStatus.BAD_REQUEST if is_part else None)
        serve(handler)

    monkeypatch.setattr(gateway, 'serve', serve_whole_only)


def _without_ranges(
    gateway: site_link.Gateway, monkeypatch: pytest.MonkeyPatch
) -> list[str | None]:
    """Make the link ask Glance for whole images only; return the ranges the compute requests."""
    asked: list[str | None] = []
    serve = gateway.serve

    def serve_whole(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path.endswith('/file'):
            asked.append(handler.headers.get('Range'))
        del handler.headers['Range']
        serve(handler)

    monkeypatch.setattr(gateway, 'serve', serve_whole)
    return asked


def test_killed_compute_resumes_from_disk(
    deployment: Deployment, host: Host, upload_image: UploadImage
) -> None:
    data = os.urandom(LARGE_BYTES)
    image_id = upload_image(data)
    request_id = _killed_after_a_note(deployment, host, image_id)
    noted_bytes = _noted_bytes(host, image_id)

    deployment.gateway.release()
    deployment.start(host.name)
    request = deployment.service.wait(request_id)

    assert request['counts'] == {'cached': 1}
    _, second = deployment.gateway.served(image_id)
    assert (second.status, second.requested_range) == (206, f'bytes={noted_bytes}-')
    assert second.bytes_sent == LARGE_BYTES - noted_bytes
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def test_replaced_image_is_never_mixed(
    deployment: Deployment,
    host: Host,
    upload_image: UploadImage,
    glance: glance_server.GlanceServer,
) -> None:
    data = os.urandom(LARGE_BYTES)
    image_id = upload_image(data)
    request_id = _killed_after_a_note(deployment, host, image_id)

    other = data[:NOTED_BYTES] + os.urandom(LARGE_BYTES - NOTED_BYTES)
    _forget(glance, image_id)
    upload_image(other, id=image_id)
    deployment.gateway.release()
    deployment.start(host.name)
    request = deployment.service.wait(request_id)

    assert request['counts'] == {'cached': 1}
    assert [each.requested_range for each in deployment.gateway.served(image_id)] == [None, None]
    deployment.assert_cached(image_id, other, [host])
    deployment.assert_tidy()


def _killed_after_a_note(deployment: Deployment, host: Host, image_id: str) -> str:
    """Kill a compute in mid-download, keep its link held, and return the request's id."""
    deployment.gateway.hold(at_byte=NOTED_BYTES + 8 * MIB)
    service = deployment.service
    request_id = service.cache(service.aggregate(image_id, (host,)), image_id)
    wait_until(lambda: _noted_bytes(host, image_id) >= NOTED_BYTES, 'what came is noted')
    deployment.gateway.wait_for(1)
    deployment.kill(host.name)
    assert not host.base_path(image_id).exists()
    return request_id


def _noted_bytes(host: Host, image_id: str) -> int:
    name = host.base_path(image_id).name
    notes = [0]
    for journal in host.base_directory.glob(f'{name}.*.journal'):
        for line in journal.read_text().splitlines()[1:]:
            notes.append(json.loads(line)['synced_bytes'])
    return notes[-1]


def _forget(glance: glance_server.GlanceServer, image_id: str) -> None:
    """Purge an image from Glance's database: Glance keeps the ids of deleted images."""
    requests.delete(
        f'{glance.url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS
    ).raise_for_status()
    with contextlib.closing(sqlite3.connect(glance.directory / 'glance.db')) as database:
        for table in ('image_locations', 'image_properties', 'image_members', 'image_tags'):
            database.execute(f'DELETE FROM {table} WHERE image_id = ?', (image_id,))  # noqa: S608
        database.execute('DELETE FROM images WHERE id = ?', (image_id,))
        database.commit()


def test_stopped_compute_releases_lock_and_resumes(
    deployment: Deployment, host: Host, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service = deployment.service
    deployment.gateway.hold(at_byte=2 * MIB)
    request_id = service.cache(service.aggregate(image_id, (host,)), image_id)
    deployment.gateway.wait_for(1)
    held = wait_until(lambda: service.tasks(request_id)[0]['bytes_done'], 'some bytes came')
    assert _is_locked(host, image_id)

    deployment.stop(host.name)

    assert not _is_locked(host, image_id)
    assert not host.base_path(image_id).exists()
    assert _noted_bytes(host, image_id) >= held
    deployment.gateway.release()
    deployment.start(host.name)
    assert service.wait(request_id)['counts'] == {'cached': 1}
    first, second = deployment.gateway.served(image_id)
    start = int(second.requested_range.removeprefix('bytes=').removesuffix('-'))  # type: ignore[union-attr]
    assert held <= start <= first.bytes_sent
    assert second.bytes_sent == len(data) - start
    assert [task['attempts'] for task in service.tasks(request_id)] == [1]
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def _is_locked(host: Host, image_id: str) -> bool:
    name = hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324
    path = pathlib.Path(host.instances_path, 'locks', f'nova-{name}')
    with path.open('a') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_download_survives_glance_restart(
    deployment: Deployment,
    host: Host,
    upload_image: UploadImage,
    local_glance: glance_server.GlanceServer,
    local_link: site_link.Gateway,
) -> None:
    data = os.urandom(48 * MIB)
    image_id = upload_image(data)
    _upload(local_glance, image_id, data)
    service = deployment.service
    local_link.hold(at_byte=4 * MIB)
    here = {'glance': {'endpoint_override': local_link.url}}
    with deployment.configured([host.name], here):
        request_id = service.cache(service.aggregate(image_id, (host,)), image_id)
        local_link.wait_for(1)

        local_glance.stop()
        local_link.release()
        wait_until(lambda: not local_link.running(), 'the connection broke')
        local_glance.start()
        request = service.wait(request_id)

    assert request['counts'] == {'cached': 1}
    served = local_link.served(image_id)
    assert [each.status for each in served] == [200, 206]
    assert served[1].requested_range == f'bytes={served[0].bytes_sent}-'
    assert served[0].bytes_sent < len(data)
    assert sum(each.bytes_sent for each in served) == len(data)
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


@pytest.fixture
def local_glance(
    tmp_path: pathlib.Path, glance: glance_server.GlanceServer
) -> Iterator[glance_server.GlanceServer]:
    """A second Glance at the site, which a test may stop."""
    assert glance.url  # Where the first one could be started, so can this one.
    with glance_server.GlanceServer(tmp_path / 'glance', check_formats=False) as server:
        yield server


@pytest.fixture
def local_link(local_glance: glance_server.GlanceServer) -> Iterator[site_link.Gateway]:
    with site_link.Gateway(local_glance.url) as link:
        yield link


def _upload(glance: glance_server.GlanceServer, image_id: str, data: bytes) -> None:
    description = {'id': image_id, 'disk_format': 'raw', 'container_format': 'bare'}
    images = f'{glance.url}/v2/images'
    requests.post(images, json=description, timeout=TIMEOUT_SECONDS).raise_for_status()
    headers = {'Content-Type': 'application/octet-stream'}
    url = f'{images}/{image_id}/file'
    requests.put(url, data=data, headers=headers, timeout=120).raise_for_status()


def _cache(deployment: Deployment, host: Host, image_id: str) -> None:
    service = deployment.service
    request_id = service.cache(service.aggregate(image_id, (host,)), image_id)
    assert service.wait(request_id)['counts'] == {'cached': 1}
    assert [task['attempts'] for task in service.tasks(request_id)] == [1]


def _ranges(deployment: Deployment, image_id: str) -> list[tuple[int, str | None]]:
    served = deployment.gateway.served(image_id)
    return [(each.status, each.requested_range) for each in served]


def _served_bytes(deployment: Deployment, image_id: str) -> int:
    return sum(each.bytes_sent for each in deployment.gateway.served(image_id))
