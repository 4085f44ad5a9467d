# SPDX-License-Identifier: Apache-2.0
"""Our /v2.1 beside a stock nova-api: both answer every request alike."""

import contextlib
import dataclasses
import http.client
import json
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import requests

from nova_precache import conf as options
from nova_precache.cells import inventory
from nova_precache.db.engine import schema, session
from nova_precache.standalone import glance as glance_server
from nova_precache.wiring import api as wiring_api
from nova_precache.wsgi import server
from tests.conftest import UploadImage, require_environment
from tests.integration import compute_api_corpus as corpus
from tools.servers import nova
from tools.servers.nova import api as nova_api
from tools.waiting import TIMEOUT_SECONDS

# The caller for each API: by its token, and by Keystone's headers.
CALLER = {
    'X-Auth-Token': f'user:{corpus.PROJECT}:admin',
    'X-User-Id': 'user',
    'X-Project-Id': corpus.PROJECT,
    'X-Roles': 'admin,manager,member,reader',
}
LATEST = {corpus.VERSION: f'compute {corpus.OUR_MAXIMUM}'}
# Set by the server, not by the application.
TRANSPORT = frozenset({'connection', 'date', 'keep-alive', 'server', 'transfer-encoding'})
REQUEST_IDS = ('x-openstack-request-id', 'x-compute-request-id')

REQUEST_ID = re.compile(r'req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
UUID = re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}')
# Nova has been seen to return five digits.
TIME = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{5,6}')


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer, without the parts that differ each time."""

    status: int
    headers: Mapping[str, Sequence[str]]
    body: Any


@dataclasses.dataclass(frozen=True)
class Door:
    """An API at an address, with its newest microversion."""

    url: str
    maximum: str

    def ask(self, ask: corpus.Ask) -> Answer:
        location = urllib.parse.urlsplit(self.url)
        assert location.hostname is not None
        connection = http.client.HTTPConnection(
            location.hostname, location.port, timeout=TIMEOUT_SECONDS
        )
        with contextlib.closing(connection):
            connection.putrequest(ask.method, ask.path, skip_accept_encoding=True)
            for name, value in {**CALLER, **ask.headers}.items():
                connection.putheader(name, value.encode())
            if ask.body is not None:
                connection.putheader('Content-Length', str(len(ask.body)))
            connection.endheaders(ask.body)
            response = connection.getresponse()
            return self._read(response, response.read())

    def _read(self, response: http.client.HTTPResponse, body: bytes) -> Answer:
        headers: dict[str, list[str]] = {}
        for name, value in response.getheaders():
            headers.setdefault(name.lower(), []).append(self._normalize(name.lower(), value))
        return Answer(
            response.status,
            {name: sorted(values) for name, values in headers.items() if name not in TRANSPORT},
            self._normalize_body(body),
        )

    def _normalize(self, name: str, value: str) -> str:
        if name == 'content-length':
            return 'zero' if value == '0' else 'some'
        if name in REQUEST_IDS:
            return REQUEST_ID.sub('REQUEST', value)
        return UUID.sub('UUID', self._without_place(value))

    def _normalize_body(self, body: bytes) -> Any:
        text = self._without_place(body.decode())
        try:
            return _without_chance(json.loads(text))
        except ValueError:
            return text

    def _without_place(self, text: str) -> str:
        """Replace Nova's newest microversion by ours."""
        return text.replace(self.url, 'URL').replace(self.maximum, corpus.OUR_MAXIMUM)


def _without_additions(ask: corpus.Ask, answer: Answer) -> Answer:
    """Remove what only one of the two APIs has.

    We say where a request can be watched, and return the id of the request in every answer,
    also at the root, where Nova does not. Nova lists its deprecated v2.0 there, and we list
    our /v1.
    """
    added = {'location'} if answer.headers.get('location') == ['URL/v1/requests/UUID'] else set()
    body = answer.body
    if not ask.path.startswith('/v2.1') or answer.status == http.HTTPStatus.MULTIPLE_CHOICES:
        added.update(REQUEST_IDS)
        for listed in ('versions', 'choices'):
            if listed in body:
                body = {listed: [api for api in body[listed] if api['id'] == 'v2.1']}
    headers = {name: value for name, value in answer.headers.items() if name not in added}
    return Answer(answer.status, headers, body)


def _without_chance(value: Any, key: str = '') -> Any:
    """Replace well-formed times and uuids by constants."""
    if isinstance(value, dict):
        return {name: _without_chance(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_chance(item) for item in value]
    if key == 'uuid' and UUID.fullmatch(str(value)):
        return 'UUID'
    if key in ('created_at', 'updated_at') and TIME.fullmatch(str(value)):
        return 'TIME'
    return value


@pytest.fixture(scope='module')
def stock_api(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[nova_api.NovaApi]:
    require_environment(nova.ENVIRONMENT)
    directory = tmp_path_factory.mktemp('nova')
    with nova_api.NovaApiAlone(directory, corpus.HOSTS, glance.url) as stock:
        yield stock


@pytest.fixture(scope='module')
def doors(
    glance: glance_server.GlanceServer,
    upload_image: UploadImage,
    stock_api: nova_api.NovaApi,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Door, Door]]:
    """A stock nova-api and our API, with the same Glance."""
    _upload_images(glance.url, upload_image)
    with _serving(tmp_path_factory.mktemp('ours'), glance.url) as ours:
        yield (
            Door(stock_api.url, corpus.NOVAS_MAXIMUM),
            Door(f'http://127.0.0.1:{ours.port}', corpus.OUR_MAXIMUM),
        )


def _upload_images(glance_url: str, upload_image: UploadImage) -> None:
    for image_id in (corpus.ACTIVE, corpus.ALSO_ACTIVE, corpus.DEACTIVATED):
        upload_image(b'some bytes', id=image_id)
    images = f'{glance_url}/v2/images'
    deactivate = f'{images}/{corpus.DEACTIVATED}/actions/deactivate'
    requests.post(deactivate, timeout=TIMEOUT_SECONDS).raise_for_status()
    requests.post(images, json={'id': corpus.QUEUED}, timeout=TIMEOUT_SECONDS).raise_for_status()


@contextlib.contextmanager
def _serving(
    directory: pathlib.Path, glance_url: str, novas_database: str | None = None
) -> Iterator[server.HttpServer]:
    """Serve our API in this process, with the hosts mapped to a cell without a conductor."""
    conf = options.new(config_files=[])
    conf.set_override('auth_strategy', 'noauth2', 'api')
    conf.set_override('bind_port', 0, 'api')
    conf.set_override('connection', f'sqlite:///{directory}/precache.sqlite', 'database')
    conf.set_override('connection', novas_database, 'api_database')
    conf.set_override('endpoint_override', glance_url, 'glance')
    conf.set_override('transport_url', 'fake:/')
    database = session.connect(conf)
    schema.sync(database)
    stock = inventory.Inventory(database)
    cell = stock.create_cell('cell1', 'fake:///cell1')
    for host in corpus.HOSTS:
        stock.map_host(host, cell.uuid)
    api = wiring_api.new_server(conf, database)
    api.start()
    try:
        yield api
    finally:
        api.stop()
        database.dispose()


GROUPS = dict(corpus.groups())
STAGE = [
    (1, 'edge', ['host1'], {'availability_zone': 'az1'}, None),
    (2, 'core', ['host1', 'host2'], {'ssd': 'true'}, None),
    (3, 'spare', [], {}, None),
]


@pytest.mark.parametrize('name', GROUPS)
def test_answers_equal_those_of_nova(doors: tuple[Door, Door], name: str) -> None:
    _set_the_stage(doors)
    differences = []
    for ask in (*GROUPS[name], corpus.get(corpus.AGGREGATES)):
        stock, ours = (_without_additions(ask, door.ask(ask)) for door in doors)
        if not _is_as_expected(ask, stock, ours):
            differences.append(f'{ask}\n  Nova: {stock}\n  ours: {ours}')
    assert not differences, '\n\n'.join(differences)


def test_nova_database_lists_same_aggregates(
    doors: tuple[Door, Door],
    stock_api: nova_api.NovaApi,
    glance: glance_server.GlanceServer,
    tmp_path: pathlib.Path,
) -> None:
    _set_the_stage(doors)
    database = f'sqlite:///{stock_api.directory}/api.sqlite'
    with _serving(tmp_path, glance.url, database) as ours:
        own_url = f'http://127.0.0.1:{ours.port}'
        for path in (corpus.AGGREGATES, f'{corpus.AGGREGATES}/2'):
            theirs, read = (
                requests.get(url + path, headers={**CALLER, **LATEST}, timeout=TIMEOUT_SECONDS)
                for url in (stock_api.url, own_url)
            )
            assert (read.status_code, read.json()) == (200, theirs.json())
        refused = requests.delete(own_url + path, headers=CALLER, timeout=TIMEOUT_SECONDS)
    assert refused.status_code == 403
    assert 'kept in the database of Nova' in refused.json()['forbidden']['message']


def _is_as_expected(ask: corpus.Ask, stock: Answer, ours: Answer) -> bool:
    if ask.differs is None:
        return stock == ours
    said = None if ask.differs.message is None else ours.body['badRequest']['message']
    expected = (ask.differs.status, ask.differs.message)
    return stock != ours and (ours.status, said) == expected


def _set_the_stage(doors: Sequence[Door]) -> None:
    """Reset the aggregates to exactly those of the stage; SQLite reuses their ids."""
    for door in doors:
        found = door.ask(corpus.get(corpus.AGGREGATES)).body['aggregates']
        if [_outline(aggregate) for aggregate in found] != STAGE:
            _clear(door, found)
            answers = [door.ask(ask) for ask in corpus.STAGE]
            assert {answer.status for answer in answers} == {200}, answers


def _clear(door: Door, aggregates: Sequence[Any]) -> None:
    for aggregate in aggregates:
        for host in aggregate['hosts']:
            assert door.ask(corpus.remove_host(aggregate['id'], host)).status == 200
        assert door.ask(corpus.delete(f'{corpus.AGGREGATES}/{aggregate["id"]}')).status == 200


def _outline(aggregate: Any) -> Any:
    names = ('id', 'name', 'hosts', 'metadata', 'updated_at')
    return tuple(aggregate[name] for name in names)
