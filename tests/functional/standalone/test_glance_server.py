# SPDX-License-Identifier: Apache-2.0
"""The real Glance starts, serves ranges, keeps its images and leaves no process behind."""

import pathlib

import psutil
import pytest
import requests

from nova_precache.standalone import glance as glance_server
from tests.conftest import UploadImage
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS


def test_glance_serves_and_counts_range(
    glance: glance_server.GlanceServer, upload_image: UploadImage
) -> None:
    image_id = upload_image(b'0123456789')
    url = f'{glance.url}/v2/images/{image_id}/file'

    answer = requests.get(url, headers={'Range': 'bytes=4-'}, timeout=TIMEOUT_SECONDS)

    assert (answer.status_code, answer.content) == (206, b'456789')
    wait_until(lambda: glance.served(image_id) == 1, 'Glance has logged it')


def test_glance_hashes_uploads(
    glance: glance_server.GlanceServer, upload_image: UploadImage
) -> None:
    image_id = upload_image(b'0123456789', disk_format='qcow2', name='ten')

    image = requests.get(f'{glance.url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS).json()

    assert (image['status'], image['name'], image['size']) == ('active', 'ten', 10)
    assert image['os_hash_algo'] == 'sha512'


def test_restarted_glance_keeps_images(
    glance: glance_server.GlanceServer, tmp_path: pathlib.Path
) -> None:
    before = set(psutil.Process().children(recursive=True))
    server = glance_server.GlanceServer(tmp_path / 'glance')
    with server:
        url = server.url
        started = set(psutil.Process().children(recursive=True)) - before
        image = {'name': 'kept', 'disk_format': 'raw', 'container_format': 'bare'}
        image_id = requests.post(f'{url}/v2/images', json=image, timeout=TIMEOUT_SECONDS).json()[
            'id'
        ]

    assert started
    wait_until(lambda: not any(child.is_running() for child in started), 'no process is left')
    with server:
        assert server.url == url
        assert (
            requests.get(f'{url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS).json()['name']
            == 'kept'
        )


@pytest.mark.parametrize(
    'headers',
    [{'Origin': 'http://evil.example'}, {'Host': 'evil.example'}, {'Sec-Fetch-Site': 'cross-site'}],
)
def test_cross_site_pages_refused(
    glance: glance_server.GlanceServer, headers: dict[str, str]
) -> None:
    """Every caller is its admin, and so is a browser on this machine."""
    url, body = f'{glance.url}/v2/images', '{"name": "made by a page"}'
    answers = [
        requests.post(
            url, body, headers={**headers, 'Content-Type': 'text/plain'}, timeout=TIMEOUT_SECONDS
        ),
        requests.get(url, headers=headers, timeout=TIMEOUT_SECONDS),
    ]
    assert [answer.status_code for answer in answers] == [403, 403]
    found = requests.get(f'{url}?name=made by a page', timeout=TIMEOUT_SECONDS).json()
    assert found['images'] == []
