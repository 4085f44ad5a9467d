# SPDX-License-Identifier: Apache-2.0
"""Requests and tasks at /v1: their shapes, filters, pages, and who sees which."""

import datetime
import urllib.parse
import uuid
from typing import Any

import pytest
import sqlalchemy as sa

from nova_precache import model
from nova_precache.db import agents, jobs, requests as store
from nova_precache.db.engine import models
from nova_precache.db.request import plan as request_plan


@pytest.fixture
def make(api: Any, aggregate: Any) -> Any:
    """Return a function that saves a request and returns its id."""

    def save(project_id: str | None = 'p1', images: int = 1, ids: Any = (), **fields: Any) -> str:
        new = store.NewRequest(
            images=ids or tuple(str(uuid.uuid4()) for _ in range(images)),
            project_id=project_id,
            user_id='u1',
            request_id='req-1',
            **{'aggregate': aggregate, **fields},
        )
        return str(api.requests.accept(new).id)

    return save


def plan(api: Any, request_id: str) -> list[model.Task]:
    """Plan one task for each of the aggregate's hosts and images."""
    to_plan = api.requests.next_to_plan('c1')
    assert to_plan.request.id == request_id
    cell = api.inventory.list_cells()[0].uuid
    tasks = [
        request_plan.PlannedTask(host=host, cell_uuid=cell, image_id=image)
        for host in ('host1', 'host2')
        for image in to_plan.request.images
    ]
    assert api.requests.add_tasks(request_id, 'c1', tasks)
    assert api.requests.mark_planned(request_id, 'c1')
    return list(api.requests.tasks(request_id))


def ids(response: Any) -> list[str]:
    assert response.status_int == 200
    return [request['id'] for request in response.json['requests']]


def follow(response: Any, collection: str) -> str:
    (link,) = response.json[f'{collection}_links']
    assert link['rel'] == 'next'
    return str(link['href']).removeprefix('http://api.example:8774')


def test_new_request_shown_in_full(api: Any, make: Any, aggregate: Any) -> None:
    request_id = make()
    response = api.get(f'/v1/requests/{request_id}')
    assert response.status_int == 200
    shown = response.json['request']
    saved = api.requests.get(request_id)
    assert shown.pop('created_at') == saved.created_at.isoformat(timespec='microseconds') + 'Z'
    assert shown == {
        'id': request_id,
        'status': 'accepted',
        'reason': None,
        'aggregate': {'id': aggregate.id, 'uuid': aggregate.uuid, 'name': 'edge'},
        'hosts': None,
        'images': list(saved.images),
        'priority': 0,
        'options': {
            'max_parallel_hosts': None,
            'max_rate_bytes': None,
            'not_before': None,
            'deadline': None,
            'wait_for_down_hosts': False,
            'canary': None,
            'max_failures': None,
        },
        'description': None,
        'client_request_id': None,
        'pin_id': None,
        'project_id': 'p1',
        'user_id': 'u1',
        'request_id': 'req-1',
        'planned_at': None,
        'started_at': None,
        'finished_at': None,
        'hosts_total': 0,
        'hosts_done': 0,
        'counts': {},
        'bytes_done': 0,
        'bytes_total': 0,
        'rate_bytes': 0,
        'eta_seconds': None,
    }


def test_waiting_request_and_tasks_say_why(api: Any, make: Any) -> None:
    request_id = make()
    plan(api, request_id)
    steered = api.post(f'/v1/requests/{request_id}/action', {'pause': None}).json['request']
    shown = api.get(f'/v1/requests/{request_id}').json['request']
    (listed,) = api.get('/v1/requests').json['requests']
    tasks = api.get(f'/v1/requests/{request_id}/tasks').json['tasks']
    assert {each['reason'] for each in (steered, shown, listed)} == {'it is paused'}
    assert {task['reason'] for task in tasks} == {'its request is paused'}


def test_silent_compute_shown_without_rate(api: Any, make: Any) -> None:
    request_id = make()
    plan(api, request_id)
    cell = api.inventory.list_cells()[0].uuid
    agents.Agents(api.database, 60).register(model.Agent('host1', 'agent-1', cell))
    work = jobs.Jobs(api.database, 30)
    (claimed,) = work.claim_hosts('c1', limit=1)
    first = claimed.first
    assert first is not None
    assert work.begin(first.job_id, first.epoch)
    progress = model.Progress('downloading', 10, 100, rate_bytes=9)
    assert work.record_progress([jobs.ProgressReport(first.job_id, first.epoch, 1, progress)])
    assert api.get(f'/v1/requests/{request_id}').json['request']['rate_bytes'] == 9
    earlier = datetime.datetime.now(datetime.UTC).replace(tzinfo=None) - datetime.timedelta(
        seconds=2 * api.conf.report_interval
    )
    with api.database.engine.begin() as connection:
        connection.execute(sa.update(models.Agent).values(seen_at=earlier, started_at=earlier))
        connection.execute(sa.update(models.Job).values(progress_at=earlier))

    request = api.get(f'/v1/requests/{request_id}').json['request']
    task = api.get(f'/v1/requests/{request_id}/tasks').json['tasks'][0]

    assert (request['rate_bytes'], request['eta_seconds']) == (0, None)
    assert (task['rate_bytes'], task['eta_seconds']) == (0, None)
    assert task['reason'].startswith('no sign of the compute for 2')
    assert request['reason'].startswith('host1: no sign of the compute for 2')


def test_planned_request_counts_its_tasks(api: Any, make: Any) -> None:
    request_id = make(images=2)
    plan(api, request_id)
    shown = api.get(f'/v1/requests/{request_id}').json['request']
    assert shown['status'] == 'planned'
    assert shown['counts'] == {'queued': 4}
    assert shown['hosts_total'] == 2
    assert shown['planned_at'].endswith('Z')


def test_tasks_shown_in_full_and_order(api: Any, make: Any) -> None:
    request_id = make()
    first, second = plan(api, request_id)
    response = api.get(f'/v1/requests/{request_id}/tasks')
    assert response.status_int == 200
    assert 'tasks_links' not in response.json
    assert [task['id'] for task in response.json['tasks']] == [first.id, second.id]
    shown = response.json['tasks'][0]
    assert shown.pop('created_at').endswith('Z')
    assert shown == {
        'id': first.id,
        'request_id': request_id,
        'host': 'host1',
        'cell': first.cell_uuid,
        'cell_name': 'cell1',
        'image_id': first.image_id,
        'status': 'queued',
        'reason': 'host down: it has never reported',
        'attempts': 0,
        'bytes_done': 0,
        'bytes_total': None,
        'rate_bytes': None,
        'eta_seconds': None,
        'next_attempt_at': None,
        'started_at': None,
        'finished_at': None,
    }


def test_tasks_come_in_pages(api: Any, make: Any) -> None:
    request_id = make(images=3)
    planned = [task.id for task in plan(api, request_id)]
    seen, path = [], f'/v1/requests/{request_id}/tasks?limit=4'
    first = api.get(path)
    seen += [task['id'] for task in first.json['tasks']]
    second = api.get(follow(first, 'tasks'))
    seen += [task['id'] for task in second.json['tasks']]
    assert seen == planned
    assert 'tasks_links' not in second.json


def test_requests_paged_newest_first(api: Any, make: Any) -> None:
    made = [make() for _ in range(5)]
    first = api.get('/v1/requests?limit=2')
    second = api.get(follow(first, 'requests'))
    third = api.get(follow(second, 'requests'))
    assert ids(first) + ids(second) + ids(third) == made[::-1]
    assert 'requests_links' not in third.json
    assert 'requests_links' not in api.get('/v1/requests?limit=5').json


def test_pages_respect_max_limit(api: Any, rebuild: Any, conf: Any, make: Any) -> None:
    conf.set_override('max_limit', 2, 'api')
    for _ in range(3):
        make()
    other = rebuild()
    assert len(ids(other.get('/v1/requests'))) == 2
    assert len(ids(other.get('/v1/requests?limit=100'))) == 2


def test_requests_filtered_by_status_over_pages(api: Any, make: Any) -> None:
    planned = make()
    plan(api, planned)
    accepted = [make(), make()]
    assert ids(api.get('/v1/requests?status=planned')) == [planned]
    first = api.get('/v1/requests?status=accepted&limit=1')
    assert ids(first) == [accepted[1]]
    assert ids(api.get(follow(first, 'requests'))) == [accepted[0]]


def test_running_request_shows_rate_and_eta(api: Any, make: Any) -> None:
    request_id = make()
    task, other = plan(api, request_id)
    work = jobs.Jobs(api.database, 30)
    (claimed,) = work.claim_hosts('c1', limit=1)
    assigned = claimed.first
    assert work.begin(assigned.job_id, assigned.epoch)
    progress = model.Progress(model.TaskStatus.DOWNLOADING, 40, 100, rate_bytes=7)
    work.record_progress([jobs.ProgressReport(assigned.job_id, assigned.epoch, 1, progress)])

    shown, waiting = api.get(f'/v1/requests/{request_id}/tasks').json['tasks']
    assert (shown['id'], shown['rate_bytes'], shown['eta_seconds']) == (task.id, 7, 9)
    assert (waiting['id'], waiting['rate_bytes'], waiting['eta_seconds']) == (other.id, None, None)
    request = api.get(f'/v1/requests/{request_id}').json['request']
    assert (request['bytes_done'], request['rate_bytes'], request['eta_seconds']) == (40, 7, 9)


def test_requests_filtered_by_target(api: Any, make: Any, aggregate: Any) -> None:
    image, pin_id = str(uuid.uuid4()), str(uuid.uuid4())
    other = api.inventory.create_aggregate('rack & roll')
    of_image, of_pin = make(ids=(image,)), make(pin_id=pin_id)
    of_other = make(aggregate=other)
    for query, request_id in (
        (f'image={image}', of_image),
        (f'image={image.upper()}', of_image),
        (f'pin={pin_id}', of_pin),
        (f'aggregate={other.id}', of_other),
        (f'aggregate={other.uuid}', of_other),
        (urllib.parse.urlencode({'aggregate': 'rack & roll'}), of_other),
    ):
        assert ids(api.get(f'/v1/requests?{query}')) == [request_id]
    assert ids(api.get(f'/v1/requests?image={image}&pin={pin_id}')) == []


def test_deleted_aggregate_requests_found_by_id(api: Any, make: Any) -> None:
    gone = api.inventory.create_aggregate('gone')
    request_id = make(aggregate=gone)
    api.inventory.delete_aggregate(gone.id)
    assert ids(api.get(f'/v1/requests?aggregate={gone.id}')) == [request_id]
    assert api.get('/v1/requests?aggregate=gone').status_int == 400


def test_requests_filtered_by_creation_time(api: Any, make: Any) -> None:
    old, new = make(), make()
    long_ago = datetime.datetime(2001, 1, 1)  # noqa: DTZ001 - as the database keeps it
    row = models.CacheRequest
    change = sa.update(row).where(row.id == old).values(created_at=long_ago)
    api.database.write(lambda session: session.execute(change))
    assert ids(api.get('/v1/requests?since=2001-01-02T00:00:00Z')) == [new]
    assert ids(api.get('/v1/requests?since=2001-01-01T00:00:00')) == [new, old]
    assert ids(api.get('/v1/requests?since=2001-01-01T01:00:00%2B02:00')) == [new, old]


def test_sorted_request_pages_keep_query(api: Any, make: Any) -> None:
    made = [make(priority=priority) for priority in (5, -5, 0)]
    by_priority = [made[1], made[2], made[0]]
    assert ids(api.get('/v1/requests?sort_key=priority&sort_dir=asc')) == by_priority
    assert ids(api.get('/v1/requests?sort_key=priority')) == by_priority[::-1]
    assert ids(api.get('/v1/requests?sort_dir=asc')) == made
    response = api.get('/v1/requests?sort_key=priority&sort_dir=asc&aggregate=edge&limit=1')
    seen = ids(response)
    while 'requests_links' in response.json:
        link = follow(response, 'requests')
        assert 'aggregate=edge' in link
        response = api.get(link)
        seen += ids(response)
    assert seen == by_priority


def test_tasks_filtered_over_pages(api: Any, make: Any) -> None:
    request_id = make(images=3)
    planned = plan(api, request_id)
    path = f'/v1/requests/{request_id}/tasks'
    of_host = [task.id for task in planned if task.host == 'host2']
    first = api.get(f'{path}?host=host2&status=queued&limit=2')
    second = api.get(follow(first, 'tasks'))
    shown = first.json['tasks'] + second.json['tasks']
    assert [task['id'] for task in shown] == of_host
    image = planned[0].image_id
    tasks = api.get(f'{path}?image={image.upper()}').json['tasks']
    assert [(task['host'], task['image_id']) for task in tasks] == [
        ('host1', image),
        ('host2', image),
    ]
    assert api.get(f'{path}?status=cached').json == {'tasks': []}


@pytest.mark.parametrize(
    ('query', 'parameter'),
    [
        ('aggregate=nowhere', 'aggregate'),
        ('aggregate=', 'aggregate'),
        ('aggregate=99999999999', 'aggregate'),
        ('image=x', 'image'),
        ('pin=x', 'pin'),
        ('since=yesterday', 'since'),
        ('sort_key=id', 'sort_key'),
        ('sort_dir=up', 'sort_dir'),
        ('limit=0', 'limit'),
        ('limit=-1', 'limit'),
        ('limit=x', 'limit'),
        ('limit=', 'limit'),
        ('limit=1&limit=2', 'limit'),
        ('marker=x', 'marker'),
        ('marker=7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f', 'marker'),
        ('status=strange', 'status'),
        ('colour=red', 'colour'),
    ],
)
def test_bad_query_refused_naming_parameter(api: Any, query: str, parameter: str) -> None:
    response = api.get(f'/v1/requests?{query}')
    assert response.status_int == 400
    assert parameter in response.json['badRequest']['message']


@pytest.mark.parametrize(
    'query', ['marker=x', 'marker=' + '9' * 30, 'status=sad', 'image=x', 'limit=0']
)
def test_bad_task_query_refused(api: Any, make: Any, query: str) -> None:
    response = api.get(f'/v1/requests/{make()}/tasks?{query}')
    assert response.status_int == 400
    assert query.split('=')[0] in response.json['badRequest']['message']


@pytest.mark.parametrize('unknown', ['x', '7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f', '%00'])
@pytest.mark.parametrize('rest', ['', '/tasks'])
def test_unknown_request_not_found(api: Any, unknown: str, rest: str) -> None:
    response = api.get(f'/v1/requests/{unknown}{rest}')
    assert response.status_int == 404
    assert 'itemNotFound' in response.json


def test_project_sees_own_requests_admin_all(api: Any, make: Any) -> None:
    own, foreign, nobodys = make('p1'), make('p2'), make(None)
    assert ids(api.get('/v1/requests', token='u:p1:reader')) == [own]
    assert ids(api.get('/v1/requests', token='u:p1:admin')) == [nobodys, foreign, own]
    for rest in ('', '/tasks'):
        assert api.get(f'/v1/requests/{own}{rest}', token='u:p1:reader').status_int == 200
        assert api.get(f'/v1/requests/{foreign}{rest}', token='u:p1:reader').status_int == 404
        assert api.get(f'/v1/requests/{foreign}{rest}', token='u:p1:admin').status_int == 200


def test_foreign_request_is_no_marker(api: Any, make: Any) -> None:
    foreign = make('p2')
    response = api.get(f'/v1/requests?marker={foreign}', token='u:p1:reader')
    assert response.status_int == 400
    assert 'marker' in response.json['badRequest']['message']


@pytest.mark.parametrize('rest', ['', '/7c9e2d8a-3f4b-4c5d-8e6f-0a1b2c3d4e5f'])
def test_reader_role_is_needed(api: Any, rest: str) -> None:
    response = api.get(f'/v1/requests{rest}', token='u:p1')
    assert response.status_int == 403
    assert "Policy doesn't allow image_precache:requests:" in response.json['forbidden']['message']


# Sorted, and tasks of all requests


def test_requests_sorted_by_several_keys(api: Any, make: Any) -> None:
    made = [make(priority=priority) for priority in (1, 2, 1)]

    listed = ids(api.get('/v1/requests?sort=priority:asc,created_at:desc'))
    assert listed == [made[2], made[0], made[1]]
    first = api.get('/v1/requests?sort=priority:asc,created_at:desc&limit=2')
    assert ids(first) == listed[:2]
    assert ids(api.get(follow(first, 'requests'))) == listed[2:]


@pytest.mark.parametrize(
    ('query', 'why'),
    [
        ('requests?sort=colour:asc', 'The keys are created_at, finished_at, priority, status.'),
        ('requests?sort=priority:up', 'The directions are asc and desc.'),
        ('requests?sort=priority:', 'The directions are asc and desc.'),
        ('requests?sort=', 'The keys are '),
        ('requests?sort=priority,priority:asc', 'The key priority is listed twice.'),
        ('requests?sort=priority&sort_key=status', 'It excludes sort_key and sort_dir.'),
        ('tasks?sort=cell:asc', 'The keys are id, request_id, host, '),
        ('hosts?sort=id:asc', 'The keys are host, cell, '),
        ('pins?sort=id:asc', 'The keys are created_at, '),
        ('hosts/host1/images?sort=host:asc', 'The keys are name, size_bytes, '),
        (f'images/{uuid.uuid4()}/hosts?sort=name:asc', 'The keys are host, size_bytes, '),
    ],
)
def test_unknown_sort_lists_keys(api: Any, query: str, why: str) -> None:
    response = api.get(f'/v1/{query}')

    assert response.status_int == 400
    assert 'Invalid input for query parameters sort. ' in response.text
    assert why in response.json['badRequest']['message']


def test_tasks_of_all_requests_listed(api: Any, make: Any) -> None:
    mine, other = make(), make(project_id='p2')
    for request_id in (mine, other):
        plan(api, request_id)

    def listed(query: str = '', **more: Any) -> list[tuple[str, str]]:
        response = api.get(f'/v1/tasks{query}', **more)
        assert response.status_int == 200
        return [(task['request_id'], task['host']) for task in response.json['tasks']]

    both = [(other, 'host2'), (other, 'host1'), (mine, 'host2'), (mine, 'host1')]
    assert listed() == both
    assert listed('?sort=id:asc') == both[::-1]
    assert listed('?project_id=p1') == both[2:]
    assert listed(f'?request={other}&host=host1') == [(other, 'host1')]
    assert listed('?status=cached') == []
    assert listed(token='u1:p1:reader') == both[2:]
    assert listed('?project_id=p1', token='u1:p1:reader') == both[2:]
    first = api.get('/v1/tasks?limit=3')
    assert [task['host'] for task in api.get(follow(first, 'tasks')).json['tasks']] == ['host1']


@pytest.mark.parametrize('path', ['tasks', 'requests'])
def test_other_project_filter_forbidden(api: Any, make: Any, path: str) -> None:
    make(project_id='p2')

    assert api.get(f'/v1/{path}?project_id=p2', token='u1:p1:reader').status_int == 403
    assert len(api.get(f'/v1/{path}?project_id=p3').json[path]) == 0


def test_requests_of_one_project_listed(api: Any, make: Any) -> None:
    mine, other = make(), make(project_id='p2')

    assert ids(api.get('/v1/requests')) == [other, mine]
    assert ids(api.get('/v1/requests?project_id=p1')) == [mine]
