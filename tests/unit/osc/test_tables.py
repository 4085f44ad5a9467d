# SPDX-License-Identifier: Apache-2.0
"""Tables that fit the terminal, with the longest values that the service and Glance have."""

import re
from importlib import metadata
from typing import Any

import pytest
from rich import cells

from nova_precache import reasons
from nova_precache.osc import tables
from tests.openstack import OpenStack
from tests.unit.osc.conftest import REQUEST_ID, Wire, request, task

IMAGES = [f'0b5f7c40-0000-4000-8000-{number:012}' for number in range(3)]
NAMES = ['debian-12-genericcloud-amd64', 'x' * 255, '日本語のイメージ' * 20]
HOST = 'compute-017.example.org'
LONG_HOST = 'c' * 60 + '.' + 'd' * 60 + '.example.org'
LONG = ('no space left: ' * 100)[: reasons.MAX_LENGTH]
TIME = '2026-11-29T02:00:00.123456Z'
AGGREGATE = {'id': 1, 'uuid': 'a-uuid', 'name': 'edge-' * 50}
HOSTS: list[dict[str, Any]] = [
    {
        'host': host,
        'cell_name': 'cell1',
        'status': 'unknown',
        'cache_bytes': 1023 * 2**40,
        'free_bytes': 1023 * 2**40,
        'seen_at': TIME,
        'reason': reason,
    }
    for host, reason in ((HOST, None), (LONG_HOST, LONG))
]
FILES = [
    {
        'host': host,
        'cell_name': 'c' * 255,
        'image_id': image,
        'size_bytes': 1023 * 2**40,
        'used_by': 10000,
        'age_seconds': 10**8,
        'pinned': True,
    }
    for host, image in zip((HOST, LONG_HOST, HOST), IMAGES, strict=True)
]
SERVICES = [
    {
        'binary': 'nova-precache-conductor',
        'host': host,
        'status': 'unknown',
        'version': '12.34.56.dev7890',
        'seen_at': TIME,
    }
    for host in (HOST, LONG_HOST)
]
CELLS = [
    {
        'name': 'c' * 255,
        'status': 'disabled',
        'hosts': 10000,
        'hosts_up': 9999,
        'heard_since': TIME,
        'reason': LONG,
    }
]
PINS = [{'id': REQUEST_ID, 'status': 'active', 'aggregate': AGGREGATE, 'images': IMAGES}]
REQUESTS = [
    request(status='cancelling', aggregate=AGGREGATE),
    request(aggregate=None, hosts=[LONG_HOST]),
    request(aggregate=None, hosts=[HOST, LONG_HOST]),
]
TASKS = [
    task(host, 'downloading', image_id=image, reason=LONG)
    for host, image in zip((HOST, LONG_HOST, HOST), IMAGES, strict=True)
]
COMMANDS = sorted(
    entry.name.replace('_', ' ')
    for entry in metadata.entry_points(group='openstack.image_precache.v1')
)
CLIFF = re.compile(r'^ +\[--(sort-ascending|quote) .*\]$')
LISTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    'list': ('requests', REQUESTS),
    'task list': ('tasks', TASKS),
    'host list': ('hosts', HOSTS),
    f'image list --host {HOST}': (f'hosts/{HOST}/images', FILES),
    f'image host list {IMAGES[0]}': (f'images/{IMAGES[0]}/hosts', FILES),
    'pin list': ('pins', PINS),
    'service list': ('services', SERVICES),
    'cell list': ('cells', CELLS),
}


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv('COLUMNS', raising=False)


@pytest.fixture
def images(wire: Wire) -> None:
    found = [{'id': each, 'name': name} for each, name in zip(IMAGES, NAMES, strict=True)]
    wire.answer('GET', '/v2/images', (200, {'images': found}))


def _answer(wire: Wire, command: str) -> None:
    path, items = LISTS[command]
    wire.answer('GET', f'/v1/{path}', (200, {path.rpartition('/')[2]: items}))


def _widest(text: str) -> int:
    return max(map(cells.cell_len, text.splitlines()))


@pytest.mark.parametrize('command', LISTS)
@pytest.mark.usefixtures('images')
def test_list_fits_80_columns(wire: Wire, openstack: OpenStack, command: str) -> None:
    _answer(wire, command)

    said = openstack('precache', *command.split())

    assert said.status == 0, said.err
    assert said.out.startswith('+--')
    assert _widest(said.out) <= 80


@pytest.mark.usefixtures('images')
def test_list_uses_wide_terminal(
    wire: Wire, openstack: OpenStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(wire, 'task list')
    monkeypatch.setenv('COLUMNS', '120')

    assert 100 < _widest(openstack('precache', 'task', 'list').out) <= 120
    assert 80 < _widest(openstack('precache', 'task', 'list', '--max-width', '100').out) <= 100


@pytest.mark.usefixtures('images')
def test_long_list_is_not_wrapped(wire: Wire, openstack: OpenStack) -> None:
    _answer(wire, 'task list')

    assert LONG.strip() in openstack('precache', 'task', 'list', '--long').out


@pytest.mark.usefixtures('images')
def test_machine_output_has_full_values(wire: Wire, openstack: OpenStack) -> None:
    _answer(wire, 'task list')

    rows = openstack('precache', 'task', 'list', '-f', 'json').json

    assert [(row['Image'], row['Reason']) for row in rows] == [(each, LONG) for each in IMAGES]
    assert [row['Host'] for row in rows] == [HOST, LONG_HOST, HOST]
    assert wire.queries('/v2/images') == []


@pytest.mark.usefixtures('images')
def test_realistic_rows_keep_host_names(wire: Wire, openstack: OpenStack) -> None:
    row = task(HOST, 'retry_wait', image_id=IMAGES[0], reason='retry in 12 s: 503 from Glance')
    wire.answer('GET', '/v1/tasks', (200, {'tasks': [row]}))

    lines = openstack('precache', 'task', 'list').out.splitlines()

    assert f'| {HOST} |' in lines[3]
    assert _column(lines, 1) == 'debian-12- genericcloud- amd64'
    assert _column(lines, 4) == 'retry in 12 s: 503 from Glance'


def _column(lines: list[str], number: int) -> str:
    cut = [line.split('|')[number + 1].strip() for line in lines[3:-1]]
    return ' '.join(filter(None, cut))


def test_shown_values_are_wrapped(wire: Wire, openstack: OpenStack) -> None:
    shown = request(reason=LONG, description=LONG, aggregate=AGGREGATE)
    wire.answer('GET', f'/v1/requests/{REQUEST_ID}', (200, {'request': shown}))

    assert _widest(openstack('precache', 'show', REQUEST_ID).out) <= 80


@pytest.mark.parametrize(
    ('text', 'width', 'lines'),
    [
        ('', 8, ['']),
        ('a  b', 8, ['a  b']),
        ('one two three', 8, ['one two', 'three']),
        ('one\ntwo three four', 8, ['one', 'two', 'three', 'four']),
        ('compute-017.example.org', 12, ['compute-017.', 'example.org']),
        ('0123456789', 8, ['01234567', '89']),
        ('日本語の名前', 8, ['日本語の', '名前']),
        ('to /var/lib/nova now', 10, ['to /var/', 'lib/nova', 'now']),
    ],
)
def test_text_wraps_between_words(text: str, width: int, lines: list[str]) -> None:
    assert tables.wrap(text, width).split('\n') == lines


@pytest.mark.parametrize('name', COMMANDS)
def test_help_fits_80_columns(
    openstack: OpenStack, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # The usage begins with "pytest" here, three letters shorter than "openstack".
    monkeypatch.setenv('COLUMNS', '77')

    said = openstack('help', *name.split())

    assert f' {name} ' in said.out
    # The usage of cliff's own options is not wrapped any further.
    ours = [line for line in said.out.splitlines() if not CLIFF.search(line)]
    assert _widest('\n'.join(ours)) <= 77


def test_every_default_list_is_measured() -> None:
    measured = {f'precache {command}' for command in LISTS}
    lists = {name for name in COMMANDS if name.split()[-1] == 'list'}

    assert all(any(each.startswith(name) for each in measured) for name in lists), lists
