# SPDX-License-Identifier: Apache-2.0
"""Estimates at /v1 match what then happens, on a real Glance."""

import os
import pathlib
from typing import Any

import requests

from tests import disk_images, gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.service import Service, wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2


def post(service: Service, path: str, body: Any) -> requests.Response:
    return requests.post(
        service.precache_url + path, json={'request': body}, timeout=TIMEOUT_SECONDS
    )


def estimate(service: Service, body: Any) -> dict[str, Any]:
    answer = post(service, '/estimate', body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()['estimate'])


def cached(service: Service, body: Any) -> int:
    return int(estimate(service, body)['totals']['tasks_cached'])


def sent(gateway: site_link.Gateway, *images: str) -> int:
    return sum(each.bytes_sent for image in images for each in gateway.served(image))


def test_estimate_matches_link_traffic(
    start: Start, gateway: site_link.Gateway, upload_image: UploadImage, tmp_path: pathlib.Path
) -> None:
    service = start().service
    data = os.urandom(3 * MIB)
    warm = upload_image(os.urandom(MIB))
    packed = upload_image(disk_images.qcow2_of(tmp_path / 'packed', data), 'qcow2')
    service.aggregate('edge')
    first = service.hosts[0]
    made = post(service, '/requests', {'hosts': [first.name], 'images': [warm]})
    assert service.wait(made.json()['request']['id'])['counts'] == {'cached': 1}
    body = {'aggregate': 'edge', 'images': [warm, packed]}
    wait_until(lambda: cached(service, body) == 1, 'the host told what it has')
    sent_before = sent(gateway, warm, packed)

    told = estimate(service, body)
    assert sent(gateway, warm, packed) == sent_before, 'something was begun'
    done = service.wait(post(service, '/requests', body).json()['request']['id'])

    assert done['counts'] == {'cached': 7, 'existing': 1}
    moved_bytes = sent(gateway, warm, packed) - sent_before
    assert told['totals']['bytes_to_move'] == told['glance']['bytes'] == moved_bytes
    assert told['totals']['seconds'] is not None
    (size_bytes,) = {host.base_path(packed).stat().st_size for host in service.hosts}
    by_image = {image['image_id']: image for image in told['hosts'][1]['images']}
    moved = by_image[packed]['bytes_to_move']
    assert by_image[packed]['space_needed_bytes'] == moved + size_bytes
    wait_until(lambda: cached(service, body) == 8, 'all hosts told what they have')


def test_request_below_rpc_pin_refused(start: Start, upload_image: UploadImage) -> None:
    service = start(upgrade_levels={'compute': '0.9'}).service
    body = {'hosts': [service.hosts[0].name], 'images': [upload_image(b'data')]}
    for path in ('/requests', '/estimate'):
        answer = post(service, path, body)
        assert answer.status_code == 409
        reason = '[upgrade_levels] compute = 0.9 is too low for cache_image'
        assert answer.json()['conflictingRequest']['message'] == reason
    assert service.get('/requests') == {'requests': []}
