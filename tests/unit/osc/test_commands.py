# SPDX-License-Identifier: Apache-2.0
"""Commands: what they ask of the service, and what they print."""

import csv
import io
import json
from typing import Any

import pytest
import yaml

from nova_precache.api.schemas import (
    hosts as host_schemas,
    pins as pin_schemas,
    requests as request_schemas,
)
from nova_precache.osc import hosts, images, pins, requests, tasks
from tests.openstack import OpenStack
from tests.unit.osc.conftest import (
    IMAGE_ID,
    REQUEST_ID,
    Wire,
    fault,
    request,
    task,
)

PIN = {
    'id': 'pin-1',
    'status': 'active',
    'reason': None,
    'aggregate': {'id': 1, 'uuid': 'a-uuid', 'name': 'edge'},
    'images': [IMAGE_ID],
    'images_gone': {},
    'until': None,
    'description': 'golden',
    'coverage': {'wanted': 4, 'cached': 3},
}
PROJECT = '6a1f0c9e4b7d42f5a8e3c0d1b2f39475'
ESTIMATED_HOST = {
    'host': 'c1',
    'cell': 'cell1',
    'status': 'up',
    'reason': None,
    'images': [],
    'bytes_to_move': 2**30,
    'space_needed_bytes': 3 * 2**30,
    'free_bytes': 2 * 2**30,
    'fits': False,
    'rate_bytes': 2**20,
    'seconds': 90.0,
}
ESTIMATE = {
    'totals': {'hosts': 2, 'hosts_down': 1, 'tasks': 2, 'bytes_to_move': 2**30, 'seconds': 90.0},
    'glance': {'bytes': 2**30, 'parallel_downloads': 1, 'rate_bytes': 2**20},
}


def test_create_sends_only_given_options(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('POST', '/v1/requests', (202, {'request': request(status='accepted')}))

    said = openstack('precache', 'create', '--aggregate', 'edge', IMAGE_ID, '-f', 'json')

    assert said.json['status'] == 'accepted'
    assert wire.bodies('POST', '/v1/requests') == [
        {'request': {'aggregate': 'edge', 'images': [IMAGE_ID]}}
    ]


def test_create_sends_all_options(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('POST', '/v1/requests', (202, {'request': request()}))

    said = openstack(
        *('precache', 'create', '--host', 'c1', '--host', 'c2', '--priority', '-5'),
        *('--max-parallel-hosts', '3', '--max-rate', '50M', '--wait-for-down-hosts'),
        *('--not-before', '2026-05-01T22:00', '--deadline', '2026-05-02', '--canary', '1'),
        *('--max-failures', '2', '--description', 'rollout', '--client-request-id', 'mine'),
        IMAGE_ID,
    )

    assert said.status == 0, said.err
    assert wire.bodies('POST', '/v1/requests') == [
        {
            'request': {
                'hosts': ['c1', 'c2'],
                'images': [IMAGE_ID],
                'priority': -5,
                'max_parallel_hosts': 3,
                'max_rate_bytes': 52428800,
                'not_before': '2026-05-01T22:00:00Z',
                'deadline': '2026-05-02T00:00:00Z',
                'wait_for_down_hosts': True,
                'canary': 1,
                'max_failures': 2,
                'description': 'rollout',
                'client_request_id': 'mine',
            }
        }
    ]


@pytest.mark.parametrize(
    'arguments',
    [(), ('--aggregate', 'edge', '--host', 'c1'), ('--host', 'c1', '--max-rate', 'fast')],
)
def test_invalid_arguments_send_nothing(
    wire: Wire, openstack: OpenStack, arguments: tuple[str, ...]
) -> None:
    said = openstack('precache', 'create', *arguments, IMAGE_ID)

    assert said.status == 2
    assert wire.asked == []


def test_refusal_shows_only_its_message(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('POST', '/v1/requests', fault(400, 'badRequest', 'Image x is not active'))

    said = openstack('precache', 'create', '--aggregate', 'edge', IMAGE_ID)

    assert (said.status, said.out, said.err) == (1, '', 'Image x is not active\n')


@pytest.mark.parametrize(
    ('arguments', 'field', 'name'),
    [
        (('--aggregate', 'edge'), 'max_rate_bytes', '--max-rate'),
        (('--aggregate', 'edge'), 'not_before', '--not-before'),
        (('--aggregate', 'edge'), 'images', '<image>'),
        (('--host', 'c1'), 'hosts', '--host'),
    ],
)
def test_refusal_names_typed_option(
    wire: Wire, openstack: OpenStack, arguments: tuple[str, ...], field: str, name: str
) -> None:
    status, body = fault(400, 'badRequest', f'Invalid input for field/attribute {field}. Value: 0')
    body['badRequest'] |= {'field': field, 'detail': 'It is wrong.'}
    wire.answer('POST', '/v1/requests', (status, body))

    said = openstack('precache', 'create', *arguments, IMAGE_ID)

    assert (said.status, said.err) == (1, f'{name}: It is wrong.\n')


def test_unknown_field_shows_message(wire: Wire, openstack: OpenStack) -> None:
    status, body = fault(400, 'badRequest', 'The colour is wrong')
    body['badRequest'] |= {'field': 'colour', 'detail': 'It is wrong.'}
    wire.answer('GET', '/v1/requests', (status, body))

    assert openstack('precache', 'list').err == 'The colour is wrong\n'


def test_long_refusal_is_cut(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/requests', fault(400, 'badRequest', 'line\n' * 1000))

    said = openstack('precache', 'list')

    assert said.err.startswith('line line line ')
    assert said.err.endswith('…\n')
    assert len(said.err) < 400


def test_proxy_error_page_not_shown(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/requests/{REQUEST_ID}', (502, '<html>Bad Gateway</html>'))

    said = openstack('precache', 'show', REQUEST_ID)

    assert said.status == 1
    assert said.err == 'The image pre-caching service answered 502 Bad Gateway\n'


@pytest.mark.parametrize(
    ('answer', 'told'),
    [
        ((300, {'choices': []}), 'The image pre-caching service answered 300 Multiple Choices'),
        ((200, '<html>Welcome</html>'), 'No image pre-caching service found at {url}/v1/requests'),
        ((200, ['something else']), 'No image pre-caching service found at {url}/v1/requests'),
    ],
)
def test_foreign_service_is_recognized(
    answer: tuple[int, Any], told: str, wire: Wire, openstack: OpenStack
) -> None:
    wire.answer('GET', '/v1/requests', answer)

    said = openstack('precache', 'list')

    assert (said.status, said.out, said.err) == (1, '', f'{told.format(url=wire.url)}\n')


def test_list_follows_every_page(wire: Wire, openstack: OpenStack) -> None:
    link = {'rel': 'next', 'href': 'http://elsewhere.example/v1/requests?limit=1&marker=a'}
    wire.answer(
        *('GET', '/v1/requests'),
        (200, {'requests': [request(id='a')], 'requests_links': [link]}),
        (200, {'requests': [request(id='b')]}),
    )

    said = openstack('precache', 'list', '-f', 'json')

    assert [row['ID'] for row in said.json] == ['a', 'b']
    assert [query.get('marker') for query in wire.queries('/v1/requests')] == [None, 'a']


def test_list_stops_at_limit(wire: Wire, openstack: OpenStack) -> None:
    link = {'rel': 'next', 'href': 'http://elsewhere.example/v1/requests?marker=b'}
    wire.answer(
        *('GET', '/v1/requests'),
        (200, {'requests': [request(id='a'), request(id='b')], 'requests_links': [link]}),
        (200, {'requests': [request(id='c'), request(id='d')], 'requests_links': [link]}),
    )

    said = openstack('precache', 'list', '--limit', '3', '-f', 'value', '-c', 'ID')

    assert said.out.split() == ['a', 'b', 'c']
    assert [query['limit'] for query in wire.queries('/v1/requests')] == ['3', '1']


def test_list_sends_filters(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/requests', (200, {'requests': []}))

    said = openstack(
        *('precache', 'list', '--status', 'failed', '--aggregate', 'edge', '--image', IMAGE_ID),
        *('--since', '2026-01-01', '--sort', 'priority:desc,created_at', '--project', PROJECT),
        *('--marker', 'm', '--pin', 'p'),
    )

    assert said.status == 0, said.err
    assert wire.queries('/v1/requests') == [
        {
            'status': 'failed',
            'aggregate': 'edge',
            'image': IMAGE_ID,
            'since': '2026-01-01T00:00:00Z',
            'sort': 'priority:desc,created_at:asc',
            'project_id': PROJECT,
            'marker': 'm',
            'pin': 'p',
        }
    ]


def test_machine_output_has_numbers(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/requests', (200, {'requests': [request()]}))
    list_them = ('precache', 'list', '--long', '-f')

    (as_json,) = openstack(*list_them, 'json').json
    (as_yaml,) = yaml.safe_load(openstack(*list_them, 'yaml').out)
    (as_csv,) = csv.DictReader(io.StringIO(openstack(*list_them, 'csv').out))

    assert as_json == as_yaml
    assert as_json['Bytes Done'] == 157286400
    assert as_json['Rate'] == 10485760
    assert as_json['ETA'] == 5.0
    assert as_json['Counts'] == {'cached': 1, 'downloading': 1}
    assert as_csv['Bytes Done'] == '157286400'
    assert openstack(*list_them, 'value', '-c', 'Bytes Done').out == '157286400\n'


def test_human_output_has_units(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/requests/{REQUEST_ID}', (200, {'request': request()}))

    table = openstack('precache', 'show', REQUEST_ID).out

    for words in ('150.0 MiB', '10.0 MiB/s', '0:00:05', 'downloading: 1', 'name: edge'):
        assert words in table
    assert 'None' not in table


def test_named_host_request_listed(wire: Wire, openstack: OpenStack) -> None:
    shown = request(aggregate=None, hosts=['c1', 'c2'])
    wire.answer('GET', '/v1/requests', (200, {'requests': [shown]}))

    assert openstack('precache', 'list', '-f', 'value', '-c', 'For').out == 'c1, c2\n'


@pytest.mark.parametrize(
    ('arguments', 'body'),
    [
        (('cancel',), {'cancel': None}),
        (('cancel', '--keep-partial'), {'cancel': {'keep_partial': True}}),
        (('pause',), {'pause': None}),
        (('resume',), {'resume': None}),
        (('retry',), {'retry': None}),
        (('retry', '--host', 'c1', '--host', 'c2'), {'retry': {'hosts': ['c1', 'c2']}}),
        (
            ('retry', '--deadline', '2026-05-02'),
            {'retry': {'deadline': '2026-05-02T00:00:00Z'}},
        ),
    ],
)
def test_action_sent_and_request_shown(
    wire: Wire, openstack: OpenStack, arguments: tuple[str, ...], body: dict[str, Any]
) -> None:
    path = f'/v1/requests/{REQUEST_ID}/action'
    wire.answer('POST', path, (202, {'request': request(status='cancelling')}))

    said = openstack('precache', *arguments, REQUEST_ID, '-f', 'json')

    assert said.json['status'] == 'cancelling'
    assert wire.bodies('POST', path) == [body]


def test_action_attempted_for_each_request(wire: Wire, openstack: OpenStack) -> None:
    gone = fault(404, 'itemNotFound', 'Request b could not be found.')
    ended = fault(409, 'conflict', 'It has ended.')
    for request_id, answer in (('a', None), ('b', gone), ('c', ended), ('d', None)):
        accepted = (202, {'request': request(id=request_id, status='paused')})
        wire.answer('POST', f'/v1/requests/{request_id}/action', answer or accepted)

    said = openstack('precache', 'pause', 'a', 'b', 'c', 'd', 'a', '-f', 'json')

    assert said.status == 1
    assert json.loads(said.out) == {'a': 'paused', 'd': 'paused'}
    assert said.err.splitlines() == ['Request b could not be found.', 'c: It has ended.']
    assert [asked.path.split('/')[3] for asked in wire.asked] == ['a', 'b', 'c', 'd']


def test_action_refused_for_all(wire: Wire, openstack: OpenStack) -> None:
    said = openstack('precache', 'cancel', 'a', 'b')

    assert (said.status, said.out, len(said.err.splitlines())) == (1, '', 2)


@pytest.mark.parametrize(
    ('arguments', 'body'),
    [
        (('--priority', '5'), {'priority': 5}),
        (('--max-rate', '1M', '--no-deadline'), {'max_rate_bytes': 2**20, 'deadline': None}),
        (
            ('--max-parallel-hosts', '3', '--deadline', '2026-05-02', '--no-max-rate'),
            {'max_parallel_hosts': 3, 'deadline': '2026-05-02T00:00:00Z', 'max_rate_bytes': None},
        ),
        (('--no-max-parallel-hosts',), {'max_parallel_hosts': None}),
    ],
)
def test_request_changes_sent(
    wire: Wire, openstack: OpenStack, arguments: tuple[str, ...], body: dict[str, Any]
) -> None:
    path = f'/v1/requests/{REQUEST_ID}'
    wire.answer('PATCH', path, (200, {'request': request(priority=5)}))

    said = openstack('precache', 'request', 'set', REQUEST_ID, *arguments, '-f', 'json')

    assert said.json['priority'] == 5
    assert wire.bodies('PATCH', path) == [{'request': body}]


def test_empty_change_is_refused(wire: Wire, openstack: OpenStack) -> None:
    said = openstack('precache', 'request', 'set', REQUEST_ID)

    assert (said.status, wire.asked) == (1, [])
    assert said.err.startswith('Nothing to change: give --priority')


@pytest.mark.parametrize('typed', ['1_0', '9' * 5000])
def test_wrong_number_is_refused(wire: Wire, openstack: OpenStack, typed: str) -> None:
    said = openstack('precache', 'request', 'set', REQUEST_ID, '--max-parallel-hosts', typed)

    assert (said.status, wire.asked) == (2, [])
    assert said.err.startswith(f"argument --max-parallel-hosts: '{typed[:60]}'")
    assert len(said.err) < 250


def test_tasks_of_all_requests_listed(wire: Wire, openstack: OpenStack) -> None:
    found = [task('c1', 'cached', request_id=name) for name in 'ab']
    wire.answer('GET', '/v1/tasks', (200, {'tasks': found}))

    said = openstack(
        *('precache', 'task', 'list', '--host', 'c1', '--project', PROJECT, '--sort', 'host'),
        *('--long', '-f', 'json'),
    )

    assert [row['Request'] for row in said.json] == ['a', 'b']
    assert wire.queries('/v1/tasks') == [{'host': 'c1', 'project_id': PROJECT, 'sort': 'host:asc'}]


def test_request_given_as_option(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/requests/{REQUEST_ID}/tasks', (200, {'tasks': []}))

    said = openstack('precache', 'task', 'list', '--request', REQUEST_ID)

    assert said.status == 0, said.err
    assert openstack('precache', 'task', 'list', 'a', '--request', 'b').status == 2


def test_who_asked_is_listed(wire: Wire, openstack: OpenStack) -> None:
    found = request(project_id=PROJECT, user_id='me')
    wire.answer('GET', '/v1/requests', (200, {'requests': [found]}))

    (row,) = openstack('precache', 'list', '--long', '-f', 'json').json

    assert (row['Project'], row['User']) == (PROJECT, 'me')


@pytest.mark.parametrize('sort', ['colour', 'status:up', 'status:', ',', ':asc'])
def test_bad_sort_names_option(wire: Wire, openstack: OpenStack, sort: str) -> None:
    said = openstack('precache', 'list', '--sort', sort)

    assert (said.status, wire.asked) == (2, [])
    assert 'argument --sort: ' in said.err


def test_sort_keys_are_those_of_api() -> None:
    assert requests.List.sort_keys == request_schemas.SORT_KEYS
    assert tasks.List.sort_keys == request_schemas.SORT_TASKS
    assert hosts.List.sort_keys == host_schemas.SORT_KEYS
    assert images.List.sort_keys == host_schemas.SORT_IMAGES
    assert images.ListHosts.sort_keys == host_schemas.SORT_IMAGE_HOSTS
    assert pins.List.sort_keys == pin_schemas.SORT_KEYS


def test_tasks_listed_with_reasons(wire: Wire, openstack: OpenStack) -> None:
    path = f'/v1/requests/{REQUEST_ID}/tasks'
    wire.answer('GET', path, (200, {'tasks': [task('c1', 'error', reason='the disk is full')]}))

    said = openstack(
        *('precache', 'task', 'list', REQUEST_ID, '--status', 'error', '--host', 'c1'),
        *('--image', IMAGE_ID, '--long', '-f', 'json'),
    )

    (row,) = said.json
    assert (row['Host'], row['Status'], row['Reason']) == ('c1', 'error', 'the disk is full')
    assert wire.queries(path) == [{'status': 'error', 'host': 'c1', 'image': IMAGE_ID}]


def test_estimate_shows_every_host(wire: Wire, openstack: OpenStack) -> None:
    down = {**ESTIMATED_HOST, 'host': 'c2', 'status': 'down', 'reason': 'host is down'}
    link = {'rel': 'next', 'href': 'http://elsewhere.example/v1/estimate?marker=c1'}
    pages = (
        (200, {'estimate': {'hosts': [ESTIMATED_HOST], **ESTIMATE}, 'hosts_links': [link]}),
        (200, {'estimate': {'hosts': [down], **ESTIMATE}}),
    )
    estimate = ('precache', 'estimate', '--aggregate', 'edge', IMAGE_ID)

    wire.answer('POST', '/v1/estimate', *pages)
    table = openstack(*estimate).out
    wire.answer('POST', '/v1/estimate', *pages)
    raw = openstack(*estimate, '-f', 'json').json

    assert 'c1: 1.0 GiB to move, 2.0 GiB free, 0:01:30, NOT' in table
    assert 'ENOUGH SPACE: needs 3.0 GiB' in table
    assert 'c2: host is down' in table
    assert (raw['bytes_to_move'], raw['seconds'], raw['glance_bytes']) == (2**30, 90.0, 2**30)
    assert [host['host'] for host in raw['by_host']] == ['c1', 'c2']
    assert wire.queries('/v1/estimate')[-2:] == [{}, {'marker': 'c1'}]


def test_hosts_and_images_listed(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/hosts', (200, {'hosts': [{'host': 'c/1', 'cache_bytes': 2**30}]}))
    held = {'image_id': IMAGE_ID, 'disk_bytes': 2**20, 'pinned': True}
    wire.answer('GET', '/v1/hosts/c%2F1/images', (200, {'images': [held]}))

    (host,) = openstack('precache', 'host', 'list', '--status', 'up', '--long', '-f', 'json').json
    (image,) = openstack(
        *('precache', 'image', 'list', '--host', 'c/1', '--long', '-f', 'json')
    ).json

    assert (host['Host'], host['Cache']) == ('c/1', 2**30)
    assert (image['Image'], image['On Disk'], image['Pinned']) == (IMAGE_ID, 2**20, True)
    assert wire.queries('/v1/hosts') == [{'status': 'up'}]


def test_forbidden_hosts_name_the_rule(wire: Wire, openstack: OpenStack) -> None:
    why = "Policy doesn't allow image_precache:hosts:list to be performed."
    wire.answer('GET', '/v1/hosts', (403, {'forbidden': {'code': 403, 'message': why}}))

    said = openstack('precache', 'host', 'list')

    assert (said.status, said.out, said.err.strip()) == (1, '', why)


def test_hosts_of_image_shown(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': [{'host': 'c1'}]}))

    (row,) = openstack('precache', 'image', 'host', 'list', IMAGE_ID, '-f', 'json').json

    assert row['Host'] == 'c1'


def test_host_is_shown(wire: Wire, openstack: OpenStack) -> None:
    found = {'host': 'c1', 'free_bytes': 2**30, 'seen_at': '2026-01-01T00:00:01.234567Z'}
    wire.answer('GET', '/v1/hosts/c1', (200, {'host': found}))

    table = openstack('precache', 'host', 'show', 'c1').out

    assert '1.0 GiB' in table
    assert ' 2026-01-01T00:00:01Z ' in table
    assert openstack('precache', 'host', 'show', 'c1', '-f', 'json').json == found


def test_image_is_shown(wire: Wire, openstack: OpenStack) -> None:
    image = {'id': IMAGE_ID, 'name': 'debian', 'status': 'active', 'size': 2**20}
    wire.answer('GET', '/v2/images', (200, {'images': [image]}))
    holders = [{'host': name, 'disk_bytes': 2**20} for name in ('c1', 'c2')]
    wire.answer('GET', f'/v1/images/{IMAGE_ID}/hosts', (200, {'hosts': holders}))
    wire.answer('GET', '/v1/hosts', (200, {'hosts': [{'host': f'c{n}'} for n in range(3)]}))
    wire.answer('GET', '/v1/pins', (200, {'pins': [PIN, {**PIN, 'id': 'b', 'images': []}]}))

    shown = openstack('precache', 'image', 'show', IMAGE_ID, '-f', 'json').json

    assert shown == {
        'id': IMAGE_ID,
        'name': 'debian',
        'status': 'active',
        'size_bytes': 2**20,
        'hosts_cached': 2,
        'hosts_total': 3,
        'disk_bytes': 2**21,
        'pinned_by': ['pin-1'],
    }


def test_cell_chosen_by_name(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('GET', '/v1/cells', (200, {'cells': [{'id': 'a-uuid', 'name': 'cell1'}]}))
    wire.answer('GET', '/v1/hosts', (200, {'hosts': []}))

    openstack('precache', 'host', 'list', '--cell', 'cell1', '--aggregate', 'edge')
    unknown = openstack('precache', 'host', 'list', '--cell', 'cell2')

    assert wire.queries('/v1/hosts') == [{'cell': 'a-uuid', 'aggregate': 'edge'}]
    assert unknown.err == "--cell: no cell has the name or UUID 'cell2'\n"


def test_services_and_cells_listed(wire: Wire, openstack: OpenStack) -> None:
    agent = {'binary': 'nova-precache-compute', 'host': 'c1', 'seen_at': '2026-01-01T00:00:00.5Z'}
    wire.answer('GET', '/v1/services', (200, {'services': [agent]}))
    cell = {'name': 'cell1', 'status': 'down', 'hosts': 4, 'hosts_up': 3, 'reason': 'silent'}
    wire.answer('GET', '/v1/cells', (200, {'cells': [cell]}))

    services = openstack('precache', 'service', 'list', '--binary', 'compute').out
    cells = openstack('precache', 'cell', 'list').out

    assert '| compute | c1 ' in services
    assert ' 2026-01-01T00:00:00Z ' in services
    assert wire.queries('/v1/services') == [{'binary': 'nova-precache-compute'}]
    assert '| cell1 | down   | 3 of 4 ' in cells


def test_pin_created_listed_and_shown(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('POST', '/v1/pins', (201, {'pin': PIN}))
    wire.answer('GET', '/v1/pins', (200, {'pins': [PIN]}))
    wire.answer('GET', '/v1/pins/pin-1', (200, {'pin': PIN}))

    made = openstack(
        *('precache', 'pin', 'create', '--aggregate', 'edge', '--until', '2027-01-01'),
        *('--description', 'golden', IMAGE_ID, '-f', 'json'),
    )
    listed = openstack('precache', 'pin', 'list', '--status', 'active', '-f', 'json')
    shown = openstack('precache', 'pin', 'show', 'pin-1')

    assert made.json['id'] == 'pin-1'
    assert wire.bodies('POST', '/v1/pins') == [
        {
            'pin': {
                'aggregate': 'edge',
                'images': [IMAGE_ID],
                'until': '2027-01-01T00:00:00Z',
                'description': 'golden',
            }
        }
    ]
    assert [(row['ID'], row['Aggregate']) for row in listed.json] == [('pin-1', 'edge')]
    assert 'cached: 3' in shown.out


def test_missing_pin_does_not_block_others(wire: Wire, openstack: OpenStack) -> None:
    wire.answer('DELETE', '/v1/pins/a', fault(404, 'itemNotFound', 'Pin a could not be found.'))
    wire.answer('DELETE', '/v1/pins/b', (204, ''))

    said = openstack('precache', 'pin', 'delete', 'a', 'b')

    assert (said.status, said.err) == (1, 'Pin a could not be found.\n')
    assert [asked.path for asked in wire.asked] == ['/v1/pins/a', '/v1/pins/b']
