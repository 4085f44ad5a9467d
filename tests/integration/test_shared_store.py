# SPDX-License-Identifier: Apache-2.0
"""Two hosts with one instances_path, as over NFS: one download of an image serves both."""

import json
import os
import pathlib
from collections.abc import Iterator

import pytest
import requests

from tests.conftest import UploadImage
from tests.integration.conftest import CONDUCTORS, Deployment
from tests.service import Host, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
NOTED_BYTES = 64 * MIB


@pytest.fixture(scope='module')
def pair(
    whole_deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Host, Host]]:
    """Two hosts of a cell that share a directory, and are called at the same time."""
    path = tmp_path_factory.mktemp('shared') / 'instances'
    whole_deployment.mend()
    first, second = whole_deployment.hosts[:2]
    names = (*CONDUCTORS, first.name, second.name)
    changes = {
        'DEFAULT': {'instances_path': path},
        'image_cache': {'precache_concurrency': 2},
    }
    with whole_deployment.configured(names, changes):
        yield Host(first.name, first.cell, str(path)), Host(second.name, second.cell, str(path))


def test_shared_store_downloads_image_once(
    deployment: Deployment, pair: tuple[Host, Host], upload_image: UploadImage
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    deployment.gateway.hold()
    request_id = service.cache(service.aggregate('shared', pair), image_id)
    deployment.gateway.wait_for(1)
    wait_until(lambda: len(_with_lock_open(deployment, pair, image_id)) == 2, 'the other waits')

    deployment.gateway.release()
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1, 'existing': 1})
    assert len(deployment.gateway.served(image_id)) == 1
    deployment.assert_cached(image_id, data, pair)
    assert pair[0].base_path(image_id).name in pair[0].base_files()
    assert _unfinished(pair[0]) == []


def test_other_host_resumes_killed_hosts_download(
    deployment: Deployment, pair: tuple[Host, Host], upload_image: UploadImage
) -> None:
    data = os.urandom(80 * MIB)
    image_id = upload_image(data)
    service = deployment.service
    deployment.gateway.hold(at_byte=NOTED_BYTES + 8 * MIB)
    request_id = service.cache(service.aggregate('taken over', pair), image_id)
    deployment.gateway.wait_for(1)
    wait_until(lambda: len(_with_lock_open(deployment, pair, image_id)) == 2, 'the other waits')
    [downloader] = _with_partial_open(deployment, pair)
    wait_until(lambda: _noted_bytes(pair[0]) >= NOTED_BYTES, 'what came is noted')
    noted_bytes = _noted_bytes(pair[0])  # the other goes on at once, and removes the note

    deployment.kill(downloader.name)
    wait_until(lambda: len(deployment.gateway.served(image_id)) == 2, 'the other goes on')
    deployment.gateway.release()
    deployment.start(downloader.name)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1, 'existing': 1})
    [survivor] = [host for host in pair if host != downloader]
    outcomes = {task['host']: task['status'] for task in service.tasks(request_id)}
    assert outcomes == {survivor.name: 'cached', downloader.name: 'existing'}
    _, second = deployment.gateway.served(image_id)
    assert (second.status, second.requested_range) == (206, f'bytes={noted_bytes}-')
    assert second.bytes_sent == len(data) - noted_bytes
    deployment.assert_cached(image_id, data, pair)
    assert _unfinished(pair[0]) == []


def test_removal_counts_for_both_hosts(
    deployment: Deployment, pair: tuple[Host, Host], upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    service.wait(service.cache(service.aggregate('removed'), image_id))
    names = sorted(host.name for host in service.hosts)
    wait_until(lambda: _holding(deployment, image_id) == names, 'all hosts have reported it')

    url = f'{service.precache_url}/hosts/{pair[0].name}/images/{image_id}'
    removal = requests.delete(url, timeout=TIMEOUT_SECONDS).json()['removal']

    assert (removal['status'], removal['reason']) == ('removed', None)
    assert not pair[0].base_path(image_id).exists()
    others = sorted(set(names) - {host.name for host in pair})
    assert _holding(deployment, image_id) == others


def _holding(deployment: Deployment, image_id: str) -> list[str]:
    found = deployment.service.get(f'/images/{image_id}/hosts')['hosts']
    return [each['host'] for each in found]


def _with_lock_open(deployment: Deployment, hosts: tuple[Host, ...], image_id: str) -> list[Host]:
    lock = f'nova-{hosts[0].base_path(image_id).name}'
    return [host for host in hosts if lock in _open_names(deployment, host)]


def _with_partial_open(deployment: Deployment, hosts: tuple[Host, ...]) -> list[Host]:
    return [
        host
        for host in hosts
        if any(name.endswith('.part') for name in _open_names(deployment, host))
    ]


def _open_names(deployment: Deployment, host: Host) -> set[str]:
    """List the files that the compute of a host has open."""
    names = set()
    for entry in pathlib.Path(f'/proc/{deployment.processes[host.name].pid}/fd').iterdir():
        try:
            names.add(entry.readlink().name)
        except FileNotFoundError:  # It was closed meanwhile.
            continue
    return names


def _noted_bytes(host: Host) -> int:
    notes = [0]
    for journal in host.base_directory.glob('*.journal'):
        notes += [json.loads(line)['synced_bytes'] for line in journal.read_text().splitlines()[1:]]
    return notes[-1]


def _unfinished(host: Host) -> list[str]:
    return [name for name in host.base_files() if '.' in name]
