# SPDX-License-Identifier: Apache-2.0
"""The rule for nginx: one request of the compute API is ours, and all others stay Nova's.

Both sides are one real API, each behind a gateway that records its requests.
"""

import contextlib
import dataclasses
import http.client
import http.server
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
import yaml

from nova_precache.standalone import glance as glance_server
from tests import gateway, service
from tests.conftest import UploadImage, running
from tests.functional.conftest import starting
from tests.leaks import SECRETS
from tools.servers.nginx import Nginx
from tools.waiting import TIMEOUT_SECONDS

PUBLIC = 'https://precache.example:8775'
PROJECT = 'a9b8c7d6e5f4430291827364554637fe'


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request as the proxy forwarded it."""

    method: str
    path: str
    headers: dict[str, str]


class Recorder(gateway.Gateway):
    """Forwards everything, and records it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[Asked] = []

    @property
    def address(self) -> str:
        return self.url.removeprefix('http://')

    def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        # The server has replaced several slashes at the start of its path by one.
        path = handler.requestline.split()[1]
        self.asked.append(Asked(handler.command, path, headers))
        super().serve(handler)


@dataclasses.dataclass
class Cloud:
    """Nova's endpoint with the two sides behind it."""

    proxy: Nginx
    nova: Recorder
    precache: Recorder
    service: service.Service
    glance_url: str
    directory: pathlib.Path

    def ask(
        self, method: str, path: str, body: bytes | Iterable[bytes] = b'', **headers: str
    ) -> http.client.HTTPResponse:
        """Send a request to the endpoint, without changing the path."""
        connection = http.client.HTTPConnection(
            '127.0.0.1', self.proxy.port, timeout=TIMEOUT_SECONDS
        )
        sent = {name.replace('_', '-'): value for name, value in headers.items()}
        with contextlib.closing(connection):
            connection.request(
                method, path, body, {'OpenStack-API-Version': 'compute 2.81', **sent}
            )
            answer = connection.getresponse()
            answer.read()
            return answer

    def forget(self) -> None:
        self.nova.asked.clear()
        self.precache.asked.clear()

    def openstack(self, *arguments: str) -> None:
        """Run the unmodified client against the endpoint."""
        endpoint = f'{self.proxy.url}/v2.1'
        cloud = {
            'auth_type': 'none',
            'auth': {'endpoint': endpoint},
            'compute_endpoint_override': endpoint,
            'image_endpoint_override': self.glance_url,
        }
        clouds = self.directory / 'clouds.yaml'
        clouds.write_text(yaml.safe_dump({'clouds': {'nova': cloud}}))
        done = subprocess.run(
            [pathlib.Path(sys.executable).parent / 'openstack', *arguments],
            env={**os.environ, 'OS_CLIENT_CONFIG_FILE': str(clouds), 'OS_CLOUD': 'nova'},
            capture_output=True,
            text=True,
            check=False,
        )
        assert SECRETS.look_at(done).returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope='module')
def whole_cloud(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cloud]:
    directory = tmp_path_factory.mktemp('proxy')
    with starting(directory, glance.url) as start:
        doors = start(
            api={'public_endpoint': PUBLIC}, oslo_middleware={'enable_proxy_headers_parsing': True}
        ).service
        api = doors.compute_url.removesuffix('/v2.1')
        with (
            Recorder(api) as nova,
            Recorder(api) as precache,
            running(Nginx(directory, nova.address, precache.address)) as proxy,
        ):
            yield Cloud(proxy, nova, precache, doors, glance.url, directory)


@pytest.fixture
def cloud(whole_cloud: Cloud) -> Cloud:
    whole_cloud.forget()
    return whole_cloud


OURS = [
    '/v2.1/os-aggregates/1/images',
    f'/v2.1/{PROJECT}/os-aggregates/1/images',
    '/v2.1/os-aggregates/1/images?and=a&query',
    '/v2.1/os-aggregates/racks/images',
    '//v2.1//os-aggregates/1/images',
    # The server of either API splits the path only after decoding it.
    '/v2.1/os-aggregates/1%2Fimages',
    '/v2.1/os%2Daggregates/1/images',
]
NOVAS = [
    ('GET', '/'),
    ('GET', '/v2.1/'),
    ('GET', '/v2.1/os-aggregates'),
    ('POST', '/v2.1/os-aggregates'),
    ('POST', '/v2.1/os-aggregates/1/action'),
    ('POST', f'/v2.1/{PROJECT}/os-aggregates/1/action'),
    ('GET', '/v2.1/os-aggregates/1/images'),
    ('HEAD', '/v2.1/os-aggregates/1/images'),
    ('OPTIONS', '/v2.1/os-aggregates/1/images'),
    ('PUT', '/v2.1/os-aggregates/1/images'),
    ('PATCH', '/v2.1/os-aggregates/1/images'),
    ('DELETE', f'/v2.1/{PROJECT}/os-aggregates/1/images'),
    ('POST', '/v2.1/os-aggregates/1/images/'),
    ('POST', '/v2.1/os-aggregates/1/images/x'),
    ('POST', '/v2.1/os-aggregates/1/images%3F'),
    ('POST', '/v2.1/os-aggregates//images/1'),
    ('POST', '/v2.1/os-aggregates/images'),
    ('POST', '/v2.1/os-aggregates/1/2/images'),
    ('POST', '/v2.1/os-aggregates/1/imagess'),
    ('POST', '/v2.1/OS-aggregates/1/images'),
    ('POST', '/v2.1/a/b/os-aggregates/1/images'),
    ('POST', '/v2/os-aggregates/1/images'),
    ('POST', '/v2x1/os-aggregates/1/images'),
    ('POST', '/x/v2.1/os-aggregates/1/images'),
    ('POST', '/v2.1/images'),
    ('GET', '/v2.1/images/1'),
    ('POST', '/v2.1/servers/1/action?x=/v2.1/os-aggregates/1/images'),
    ('POST', '/v1/requests'),
]


@pytest.mark.parametrize('path', OURS)
def test_cache_request_routed_to_service(cloud: Cloud, path: str) -> None:
    cloud.ask('POST', path, b'{}')

    assert [(asked.method, asked.path) for asked in cloud.precache.asked] == [('POST', path)]
    assert cloud.nova.asked == []


@pytest.mark.parametrize(('method', 'path'), NOVAS, ids=' '.join)
def test_other_requests_stay_with_nova(cloud: Cloud, method: str, path: str) -> None:
    cloud.ask(method, path, b'{}' if method != 'GET' else b'')

    assert [(asked.method, asked.path) for asked in cloud.nova.asked] == [(method, path)]
    assert cloud.precache.asked == []


def test_caller_headers_pass_without_proxy_headers(cloud: Cloud) -> None:
    said = {'X-OpenStack-Nova-API-Version': '2.81', 'X-Auth-Token': 'token'}
    said['X-OpenStack-Request-ID'] = 'req-9e3d1c5e-8d3c-4b36-a4a4-2b8b1f0a6f10'
    forged = {'Forwarded': 'host=evil', 'X-Forwarded-Prefix': '/evil', 'X-Forwarded-Port': '1'}
    forged |= {'X-Forwarded-Host': 'evil', 'X-Forwarded-For': 'evil', 'X-Forwarded-Proto': 'evil'}

    answer = cloud.ask('POST', '/v2.1/os-aggregates/1/images', b'{}', **said, **forged)

    (asked,) = cloud.precache.asked
    assert asked.headers['openstack-api-version'] == 'compute 2.81'
    assert {name: asked.headers[name.lower()] for name in said} == said
    assert 'evil' not in ' '.join(asked.headers.values())
    assert asked.headers['x-forwarded-for'] == '127.0.0.1'
    assert asked.headers['x-forwarded-proto'] == 'http'
    assert asked.headers['x-forwarded-host'] == f'127.0.0.1:{cloud.proxy.port}'
    assert answer.headers['OpenStack-API-Version'] == 'compute 2.81'
    assert answer.headers['x-compute-request-id'].startswith('req-')


def test_method_override_changes_no_route(cloud: Cloud) -> None:
    cloud.ask('GET', '/v2.1/os-aggregates/1/images', **{'X-HTTP-Method-Override': 'POST'})
    assert cloud.precache.asked == []

    cloud.ask('POST', '/v2.1/os-aggregates/1/images', b'{}', **{'X-HTTP-Method-Override': 'GET'})
    assert len(cloud.precache.asked) == 1


def test_chunked_body_arrives_with_its_length(cloud: Cloud) -> None:
    body = [b'{"cache": [', b'{"id": "no"}]}']

    answer = cloud.ask('POST', '/v2.1/os-aggregates/1/images', iter(body))

    (asked,) = cloud.precache.asked
    assert asked.headers['content-length'] == str(len(b''.join(body)))
    assert 'transfer-encoding' not in asked.headers
    assert answer.status == 400


def test_too_long_body_refused(cloud: Cloud) -> None:
    path = '/v2.1/os-aggregates/1/images'

    assert cloud.ask('POST', path, b' ' * 120_000).status == 413
    assert len(cloud.precache.asked) == 1
    assert cloud.ask('POST', path, b' ' * 200_000).status == 413
    assert len(cloud.precache.asked) == 1


def test_location_names_public_endpoint(cloud: Cloud, upload_image: UploadImage) -> None:
    aggregate_id = cloud.service.aggregate('located')
    body = json.dumps({'cache': [{'id': upload_image(b'1')}]}).encode()

    answer = cloud.ask(
        'POST',
        f'/v2.1/os-aggregates/{aggregate_id}/images',
        body,
        **{'Content-Type': 'application/json'},
    )

    assert answer.status == 202
    base, request_id = answer.headers['Location'].rsplit('/', 1)
    assert base == f'{PUBLIC}/v1/requests'
    assert cloud.service.wait(request_id)['status'] == 'completed'


def test_unmodified_client_gets_tracked_service(cloud: Cloud, upload_image: UploadImage) -> None:
    aggregate_id = cloud.service.aggregate('through-the-proxy')
    image_id = upload_image(b'2')

    cloud.openstack('aggregate', 'cache', 'image', 'through-the-proxy', image_id)

    (asked,) = cloud.precache.asked
    assert (asked.method, asked.path) == ('POST', f'/v2.1/os-aggregates/{aggregate_id}/images')
    assert {asked.method for asked in cloud.nova.asked} == {'GET'}
    (request,) = cloud.service.get('/requests')['requests'][:1]
    assert request['images'] == [image_id]
    assert cloud.service.wait(request['id'])['counts'] == {'cached': len(cloud.service.hosts)}
