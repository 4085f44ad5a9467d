# SPDX-License-Identifier: Apache-2.0
"""Processes die in mid-request; every task still ends in its one correct outcome."""

import os
import pathlib
import re
import shutil
import time
from typing import Any

import requests

from tests import disk_images
from tests.conftest import UploadImage
from tests.integration.conftest import CONDUCTORS, REPORT_SECONDS, Changes, Deployment
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
# Two missed reports, and what a busy machine may write late.
NAMED_SECONDS = 2 * REPORT_SECONDS + 5
# The call of a killed compute must not fail before.
PATIENT: Changes = {'DEFAULT': {'rpc_response_timeout': 20}}


def test_separate_processes_cache_in_two_cells(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service

    request = service.wait(service.cache(service.aggregate('plain'), image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert len(deployment.gateway.served(image_id)) == 4
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def test_killed_conductors_lose_nothing(deployment: Deployment, upload_image: UploadImage) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    deployment.gateway.hold(let_pass=2)
    request_id = service.cache(service.aggregate('conductors'), image_id)
    deployment.gateway.wait_for(1)
    wait_until(
        lambda: service.request(request_id)['counts'].get('cached') == 2, 'half of it is done'
    )

    for name in CONDUCTORS:
        deployment.kill(name)
    deployment.gateway.release()
    deployment.start(CONDUCTORS[0])
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})
    assert len(deployment.gateway.served(image_id)) == 4
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1, 1, 1]
    deployment.assert_cached(image_id, data, deployment.hosts)
    deployment.assert_tidy()


def test_killed_compute_retried_without_leftovers(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    service = deployment.service
    host = service.hosts[0]
    deployment.gateway.hold(at_byte=MIB)
    request_id = service.cache(service.aggregate('compute', (host,)), image_id)
    deployment.gateway.wait_for(1)

    deployment.kill(host.name)
    assert not host.base_path(image_id).exists()
    deployment.gateway.release()
    deployment.start(host.name)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1})
    assert service.tasks(request_id)[0]['attempts'] > 1  # also those that it missed while it began
    deployment.assert_cached(image_id, data, [host])
    deployment.assert_tidy()


def test_stopped_awaited_compute_served_later(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service = deployment.service
    first, second = service.hosts[:2]
    deployment.gateway.hold()
    request_id = service.cache(service.aggregate('queued', (first, second)), image_id)
    deployment.gateway.wait_for(1)
    [busy] = deployment.claimed_hosts()
    queued = second if busy == first.name else first

    deployment.stop(queued.name)
    deployment.gateway.release()
    wait_until(
        lambda: any(
            status == 'retry_wait' and str(reason).startswith('host down: stopped at')
            for status, reason in service.outcomes(request_id)
        ),
        'it waits for its compute',
    )
    deployment.start(queued.name)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 2})
    assert service.outcomes(request_id) == {('cached', None)}
    assert len(deployment.gateway.served(image_id)) == 2
    deployment.assert_cached(image_id, data, (first, second))
    deployment.assert_tidy()


def test_compute_killed_in_conversion_converts_again(
    deployment: Deployment, upload_image: UploadImage, qemu_img: str, tmp_path: pathlib.Path
) -> None:
    raw = disk_images.raw(tmp_path / 'source')
    image = disk_images.qcow2_of(tmp_path / 'image', raw.read_bytes())
    image_id = upload_image(image, 'qcow2')
    service = deployment.service
    host = service.hosts[0]
    converting = _slow_converter(tmp_path, qemu_img)
    deployment.stop(host.name)
    deployment.start(host.name, PATH=f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
    wait_until(lambda: service.get(f'/hosts/{host.name}')['host']['status'] == 'up', 'it is back')
    request_id = service.cache(service.aggregate('convert', (host,)), image_id)
    wait_until(converting.exists, 'the conversion runs')

    deployment.kill(host.name)
    assert not host.base_path(image_id).exists()
    assert host.base_files(), 'nothing was left to be removed'
    deployment.start(host.name)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 1})
    deployment.assert_cached(image_id, raw.read_bytes(), [host])
    deployment.assert_tidy()


def _slow_converter(directory: pathlib.Path, qemu_img: str) -> pathlib.Path:
    """Install a qemu-img that never ends a conversion; return the file that shows it has begun."""
    converting = directory / 'converting'
    program = directory / 'qemu-img'
    program.write_text(
        f'#!/bin/sh\n[ "$1" != convert ] || {{ touch {converting}; exec sleep 600; }}\n'
        f'exec {qemu_img} "$@"\n'
    )
    program.chmod(0o755)
    assert shutil.which('qemu-img', path=str(directory)) == str(program)
    return converting


def test_killed_compute_named_within_two_reports(
    deployment: Deployment, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(8 * MIB))
    service = deployment.service
    host = service.hosts[0]
    asked = {'hosts': [host.name], 'images': [image_id], 'max_rate_bytes': MIB // 8}
    with deployment.configured(CONDUCTORS, PATIENT):
        made = requests.post(
            f'{service.precache_url}/requests', json={'request': asked}, timeout=TIMEOUT_SECONDS
        )
        request_id = made.json()['request']['id']

        def shown() -> list[dict[str, Any]]:
            return [*service.tasks(request_id), service.request(request_id)]

        wait_until(lambda: all(each['rate_bytes'] for each in shown()), 'bytes arrive')
        deployment.kill(host.name)
        named_at = time.monotonic() + NAMED_SECONDS
        wait_until(lambda: time.monotonic() > named_at, 'two reports are missed')
        task, request = shown()
        action = f'{service.precache_url}/requests/{request_id}/action'
        requests.post(action, json={'cancel': None}, timeout=TIMEOUT_SECONDS).raise_for_status()

        assert task['status'] == 'downloading'
        assert re.fullmatch(r'no sign of the compute for \d+ s', task['reason'])
        assert re.fullmatch(rf'{host.name}: no sign of the compute for \d+ s', request['reason'])
        for each in (task, request):
            assert (each['rate_bytes'], each['eta_seconds']) == (0, None)
        deployment.start(host.name)
        service.wait(request_id)
        deployment.assert_tidy()


def test_killed_conductors_named(deployment: Deployment, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(MIB))
    service = deployment.service
    for name in CONDUCTORS:
        deployment.kill(name)
    request_id = service.cache(service.aggregate('named'), image_id)

    wait_until(lambda: service.request(request_id)['reason'], 'the request says why it waits')

    why = service.request(request_id)['reason']
    assert re.fullmatch(r'no conductor has answered for \d+ s', why)
    deployment.start(CONDUCTORS[0])
    assert service.wait(request_id)['counts'] == {'cached': 4}
    deployment.assert_tidy()
