# SPDX-License-Identifier: Apache-2.0
"""The real ``openstack`` shell in this process, before a service that answers as scripted."""

import dataclasses
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from keystoneauth1 import adapter, noauth, session

from nova_precache import model
from nova_precache.osc import client
from tests.openstack import OpenStack

REQUEST_ID = '5f3c1f0e-7d0b-4f43-9d4a-111111111111'
TOKEN = 'a-token'
IMAGE_ID = '0b5f7c40-0000-4000-8000-000000000001'


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request that a client sent."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class Wire:
    """A service that returns the scripted answers of each path, the last one repeatedly.

    :ivar has_etags: it sends ETags, and 304 instead of an answer that the client has
    """

    def __init__(self) -> None:
        self.url = ''
        self.has_etags = False
        self.asked: list[Asked] = []
        self._answers: dict[tuple[str, str], list[tuple[int, Any]]] = {}

    def answer(self, method: str, path: str, *answers: tuple[int, Any]) -> None:
        self._answers[method, path] = list(answers)

    def take(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        left = self._answers.get((asked.method, asked.path))
        if left is None:
            return 404, {'itemNotFound': {'code': 404, 'message': f'nothing at {asked.path}'}}
        return left.pop(0) if len(left) > 1 else left[0]

    def bodies(self, method: str, path: str) -> list[Any]:
        return [it.body for it in self.asked if (it.method, it.path) == (method, path)]

    def queries(self, path: str) -> list[dict[str, str]]:
        return [it.query for it in self.asked if it.path == path]


@pytest.fixture
def wire(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    made = Wire()
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _handler(made))
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    url = made.url = f'http://127.0.0.1:{server.server_port}'
    images = {'id': 'v2.0', 'status': 'CURRENT', 'links': [{'rel': 'self', 'href': f'{url}/v2/'}]}
    made.answer('GET', '/', (300, {'versions': [images]}))
    clouds = {'test': _without_keystone(url), 'keystone': _with_keystone(url)}
    (tmp_path / 'clouds.yaml').write_text(yaml.safe_dump({'clouds': clouds}))
    monkeypatch.setenv('OS_CLIENT_CONFIG_FILE', str(tmp_path / 'clouds.yaml'))
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def openstack(wire: Wire, capsys: pytest.CaptureFixture[str]) -> OpenStack:
    """The openstack command, with the service at the other end of the wire."""
    return OpenStack('test', capsys)


@pytest.fixture
def service(wire: Wire) -> client.ApiClient:
    """The client of the commands."""
    return client_of(wire.url)


def client_of(url: str) -> client.ApiClient:
    opened = session.Session(auth=noauth.NoAuth())
    return client.ApiClient(adapter.Adapter(opened, endpoint_override=f'{url}/v1'))


def request(**fields: Any) -> model.Json:
    """Return a request as the service does."""
    return {
        'id': REQUEST_ID,
        'status': 'running',
        'reason': None,
        'aggregate': {'id': 1, 'uuid': 'a-uuid', 'name': 'edge'},
        'hosts': None,
        'images': [IMAGE_ID],
        'options': {'max_rate_bytes': 52428800, 'deadline': None, 'wait_for_down_hosts': False},
        'priority': 0,
        'created_at': '2026-01-01T00:00:00.000000Z',
        'finished_at': None,
        'hosts_total': 2,
        'hosts_done': 1,
        'counts': {'cached': 1, 'downloading': 1},
        'bytes_done': 157286400,
        'bytes_total': 209715200,
        'rate_bytes': 10485760,
        'eta_seconds': 5.0,
        'description': None,
        **fields,
    }


def task(host: str, status: str, **fields: Any) -> model.Json:
    """Return a task as the service does."""
    return {
        'id': 1,
        'host': host,
        'cell': 'cell-uuid',
        'image_id': IMAGE_ID,
        'status': status,
        'reason': None,
        'attempts': 1,
        'bytes_done': 52428800,
        'bytes_total': 104857600,
        'rate_bytes': 10485760 if status == 'downloading' else None,
        'eta_seconds': 5.0 if status == 'downloading' else None,
        **fields,
    }


def fault(status: int, title: str, message: str) -> tuple[int, model.Json]:
    return status, {title: {'code': status, 'message': message}}


def _without_keystone(url: str) -> model.Json:
    return {
        'auth_type': 'none',
        'auth': {'endpoint': f'{url}/nowhere'},
        'image_precache_endpoint_override': f'{url}/v1',
        'image_endpoint_override': url,
    }


def _with_keystone(url: str) -> model.Json:
    who = {'username': 'me', 'password': 'secret', 'project_name': 'mine'}
    domains = {'user_domain_name': 'Default', 'project_domain_name': 'Default'}
    return {'region_name': 'RegionOne', 'auth': {'auth_url': f'{url}/v3', **who, **domains}}


def _handler(wire: Wire) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            length = int(self.headers.get('Content-Length') or 0)
            sent = self.rfile.read(length)
            asked = Asked(
                self.command,
                url.path,
                dict(urllib.parse.parse_qsl(url.query)),
                json.loads(sent) if sent else None,
                dict(self.headers),
            )
            status, body = wire.take(asked)
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            if wire.has_etags and etag == self.headers['If-None-Match']:
                status, data = 304, b''
            self.send_response(status)
            if wire.has_etags:
                self.send_header('ETag', etag)
            self.send_header('Content-Length', str(len(data)))
            if url.path.endswith('/auth/tokens'):
                self.send_header('X-Subject-Token', TOKEN)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 the library's names

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler
