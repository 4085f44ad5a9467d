# SPDX-License-Identifier: Apache-2.0
"""Access to the whole service: pages in browsers, readers of other projects."""

import http.client
import json
import os
import pathlib
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from nova_precache.standalone import glance as glance_server
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started, starting
from tools.waiting import TIMEOUT_SECONDS

DASHBOARD = 'https://dash.example'
ASKED = {'aggregate': {'name': 'made-by-a-page'}}
READER = 'user:a-project:reader'


@pytest.fixture(scope='module')
def started(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    with starting(tmp_path_factory.mktemp('doors'), glance.url) as begin:
        yield begin(cors={'allowed_origin': DASHBOARD})


def port_of(started: Started) -> int:
    return int(urllib.parse.urlsplit(started.service.compute_url).port or 0)


def ask(
    started: Started, method: str, path: str, body: str = '', **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request as a browser would; ``Host`` is the service's name in the page."""
    connection = http.client.HTTPConnection('127.0.0.1', port_of(started), timeout=TIMEOUT_SECONDS)
    sent = {name.replace('_', '-'): value for name, value in headers.items()}
    connection.request(method, path, body, sent)
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, read


def names(started: Started) -> set[str]:
    answer = requests.get(f'{started.service.compute_url}/os-aggregates', timeout=TIMEOUT_SECONDS)
    return {each['name'] for each in answer.json()['aggregates']}


FOREIGN = [
    {'Origin': 'http://evil.example'},
    {'Origin': 'null'},
    {'Origin': 'http://evil.example', 'Sec-Fetch-Site': 'cross-site'},
    {'Origin': 'http://localhost.evil.example:8774'},
    {'Sec-Fetch-Site': 'cross-site'},
    {'Host': 'evil.example'},
    {'Host': 'evil.example:8774', 'X-Forwarded-Host': 'localhost'},
]


@pytest.mark.parametrize('content_type', ['text/plain', 'application/json', ''])
@pytest.mark.parametrize('headers', FOREIGN)
def test_cross_site_page_changes_nothing(
    started: Started, headers: dict[str, str], content_type: str
) -> None:
    status, answered, body = ask(
        started,
        'POST',
        '/v2.1/os-aggregates',
        json.dumps(ASKED),
        **{**headers, 'Content-Type': content_type},
    )
    assert status == 403
    assert 'access-control-allow-origin' not in answered
    assert json.loads(body)['forbidden']['code'] == 403
    assert names(started) == set()


@pytest.mark.parametrize('headers', FOREIGN)
@pytest.mark.parametrize('path', ['/', '/healthcheck', '/v1/hosts', '/v1/openapi.json', '/nowhere'])
def test_cross_site_page_reads_nothing(
    started: Started, headers: dict[str, str], path: str
) -> None:
    for method in ('GET', 'HEAD', 'OPTIONS'):
        status, answered, body = ask(started, method, path, **headers)
        assert (status, 'access-control-allow-origin' in answered) == (403, False)
        assert b'compute' not in body


def test_preflight_allows_only_configured_origin(started: Started) -> None:
    wanted = {'Access-Control-Request-Method': 'POST', 'Sec-Fetch-Site': 'cross-site'}
    status, answered, _ = ask(started, 'OPTIONS', '/v1/requests', Origin=DASHBOARD, **wanted)
    assert (status, answered['access-control-allow-origin']) == (200, DASHBOARD)
    status, answered, _ = ask(
        started, 'OPTIONS', '/v1/requests', Origin='http://x.example', **wanted
    )
    assert (status, 'access-control-allow-origin' in answered) == (403, False)
    status, answered, _ = ask(started, 'GET', '/v1/requests', Origin=DASHBOARD)
    assert (status, answered['access-control-allow-origin']) == (200, DASHBOARD)


@pytest.mark.parametrize(
    'head',
    [
        'Host: localhost\r\nHost: evil.example\r\n',
        'Host: evil.example\r\nHost: localhost\r\n',
        'Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n',
        'Host: localhost\r\nOrigin: http://evil.example\r\nOrigin: http://localhost\r\n',
        'Host: localhost\r\nSec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n',
        'Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Site: none\r\n',
    ],
)
def test_repeated_header_bypasses_no_check(started: Started, head: str) -> None:
    with socket.create_connection(
        ('127.0.0.1', port_of(started)), timeout=TIMEOUT_SECONDS
    ) as connection:
        connection.sendall(f'GET /v1/hosts HTTP/1.1\r\n{head}Connection: close\r\n\r\n'.encode())
        assert connection.makefile('rb').readline().split()[1] in (b'400', b'403')


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1', '127.0.0.2:1', '[::1]:8774'])
def test_local_programs_and_pages_served(started: Started, host: str) -> None:
    for headers in ({}, {'Origin': 'http://localhost:3000', 'Sec-Fetch-Site': 'same-site'}):
        assert ask(started, 'GET', '/v1/hosts', Host=host, **headers)[0] == 200


def test_public_endpoint_is_only_other_name(start: Start) -> None:
    started = start(api={'public_endpoint': 'https://cloud.example/precache'})
    assert ask(started, 'GET', '/v1/hosts', Host='cloud.example')[0] == 200
    assert ask(started, 'GET', '/v1/hosts', Host='evil.example')[0] == 403
    # Headers that the caller sets do not change any link.
    _, _, body = ask(started, 'GET', '/', Host='localhost', X_Forwarded_Host='evil.example')
    assert b'evil.example' not in body
    assert b'https://cloud.example/precache/v2.1' in body


def read(started: Started, path: str, token: str = READER) -> tuple[int, Any]:
    answer = requests.get(
        f'{started.service.precache_url}{path}',
        headers={'X-Auth-Token': token},
        timeout=TIMEOUT_SECONDS,
    )
    return answer.status_code, answer.json()


def test_reader_sees_no_hosts_or_names(started: Started, upload_image: UploadImage) -> None:
    image_id = upload_image(os.urandom(1024))
    aggregate_id = started.service.aggregate('secret-rack')
    request_id = started.service.cache(aggregate_id, image_id)
    started.service.wait(request_id)
    host = started.service.hosts[0].name
    for path in (
        *('/hosts', f'/hosts/{host}', '/hosts/nowhere', f'/hosts/{host}/images'),
        *(f'/images/{image_id}/hosts', f'/images/{request_id}/hosts'),
    ):
        assert read(started, path)[0] == 403
        assert read(started, path, 'admin')[0] in (200, 404)
    for kind in ('requests', 'pins'):
        answers = [
            read(started, f'/{kind}?aggregate={asked}')
            for asked in ('secret-rack', aggregate_id, 'nowhere', 999)
        ]
        assert answers == [(200, {kind: []})] * 4
        assert read(started, f'/{kind}?aggregate=nowhere', 'admin')[0] == 400
        assert len(read(started, '/requests?aggregate=secret-rack', 'admin')[1]['requests']) == 1
    assert read(started, f'/requests/{request_id}')[0] == 404
    marked = read(started, f'/requests?marker={request_id}')
    assert marked[0] == 400
    unknown = image_id
    assert json.dumps(marked[1]).replace(request_id, unknown) == json.dumps(
        read(started, f'/requests?marker={unknown}')[1]
    )
    requests.delete(
        f'{started.service.compute_url}/os-aggregates/{aggregate_id}', timeout=TIMEOUT_SECONDS
    )


def test_fifo_as_lock_fails_only_job(start: Start, upload_image: UploadImage) -> None:
    started = start(image_cache={'precache_max_attempts': 1})
    image_id, good = upload_image(os.urandom(1024)), upload_image(os.urandom(1024))
    host = started.service.hosts[0]
    aggregate_id = started.service.aggregate('edge', (host,))
    path = pathlib.Path(host.instances_path, 'locks', f'nova-{host.base_path(image_id).name}')
    os.mkfifo(path)

    request_id = started.service.cache(aggregate_id, image_id, good)

    started.service.wait(request_id)
    outcomes = {task['image_id']: task for task in started.service.tasks(request_id)}
    assert outcomes[good]['status'] == 'cached'
    assert outcomes[image_id]['status'] == 'error'
    assert f'{path}: it is a FIFO, not a regular file' in outcomes[image_id]['reason']


@pytest.mark.parametrize('kind', ['fifo', 'symlink', 'garbage'])
def test_invalid_store_id_named_or_recreated(
    start: Start, tmp_path: pathlib.Path, kind: str
) -> None:
    started = start()
    host = started.service.hosts[0]
    started.stop()
    path = pathlib.Path(host.instances_path, '.nova-precache-store-id')
    before = path.read_text()
    path.unlink()
    if kind == 'garbage':
        path.write_bytes(b'\xff' * 301)
        shown = start().service.get(f'/hosts/{host.name}')['host']
        assert shown['store_id'] == path.read_text() != before
        return
    os.mkfifo(path) if kind == 'fifo' else path.symlink_to('/dev/zero')
    with pytest.raises(Exception, match=f'{path}: it is a') as refusal:
        start()
    assert type(refusal.value).__name__ == 'ConfigError'
    assert '\n' not in str(refusal.value)
