# SPDX-License-Identifier: Apache-2.0
"""Who may use an image, as a real Glance decides it: at the request, and in the outcome."""

import os
import pathlib
from collections.abc import Callable

import pytest
import requests

from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.service import LATEST, Service
from tools.waiting import TIMEOUT_SECONDS, wait_until

MIB = 1024**2
POLICY = '"compute:aggregates:images": "@"\n'


@pytest.fixture
def open_to_members(start: Start, tmp_path: pathlib.Path) -> Started:
    """The service, with a policy that lets every project ask for images."""
    path = tmp_path / 'policy.yaml'
    path.write_text(POLICY)
    return start(oslo_policy={'policy_file': path}, image_cache={'precache_concurrency': 4})


def _ask(service: Service, project: str, aggregate: int, image_id: str) -> str:
    answer = requests.post(
        f'{service.compute_url}/os-aggregates/{aggregate}/images',
        json={'cache': [{'id': image_id}]},
        headers={**LATEST, 'X-Auth-Token': f'user:{project}:member'},
        timeout=TIMEOUT_SECONDS,
    )
    assert answer.status_code == 202, answer.text
    return answer.headers['Location'].rsplit('/', 1)[1]


def _share(
    gateway: site_link.Gateway, image_id: str, project: str, status: str = 'accepted'
) -> None:
    members = f'{gateway.url}/v2/images/{image_id}/members'
    requests.post(members, json={'member': project}, timeout=TIMEOUT_SECONDS).raise_for_status()
    answer = {'status': status}
    requests.put(f'{members}/{project}', json=answer, timeout=TIMEOUT_SECONDS).raise_for_status()


def _patch(gateway: site_link.Gateway, image_id: str, name: str, value: str) -> None:
    requests.patch(
        f'{gateway.url}/v2/images/{image_id}',
        json=[{'op': 'replace', 'path': f'/{name}', 'value': value}],
        headers={'Content-Type': 'application/openstack-images-v2.1-json-patch'},
        timeout=TIMEOUT_SECONDS,
    ).raise_for_status()


@pytest.mark.parametrize('status', ['pending', 'rejected', 'accepted'])
def test_member_of_any_status_gets_image(
    open_to_members: Started,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    status: str,
) -> None:
    service = open_to_members.service
    image_id = upload_image(os.urandom(1024), visibility='shared', owner='p1')
    _share(gateway, image_id, 'p2', status)

    request = service.wait(_ask(service, 'p2', service.aggregate('all'), image_id))

    assert (request['status'], request['counts']) == ('completed', {'cached': 4})


def _hide(gateway: site_link.Gateway, image_id: str) -> None:
    _patch(gateway, image_id, 'visibility', 'private')


def _unshare(gateway: site_link.Gateway, image_id: str) -> None:
    member = f'{gateway.url}/v2/images/{image_id}/members/p2'
    requests.delete(member, timeout=TIMEOUT_SECONDS).raise_for_status()


def _deactivate(gateway: site_link.Gateway, image_id: str) -> None:
    deactivate = f'{gateway.url}/v2/images/{image_id}/actions/deactivate'
    requests.post(deactivate, timeout=TIMEOUT_SECONDS).raise_for_status()


def _delete(gateway: site_link.Gateway, image_id: str) -> None:
    requests.delete(
        f'{gateway.url}/v2/images/{image_id}', timeout=TIMEOUT_SECONDS
    ).raise_for_status()


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        (_hide, 'is not visible to project p2'),
        (_unshare, 'is not visible to project p2'),
        (_deactivate, 'is deactivated'),
        (_delete, 'could not be found'),
    ],
)
def test_withdrawn_image_published_nowhere(
    open_to_members: Started,
    upload_image: UploadImage,
    gateway: site_link.Gateway,
    change: Callable[[site_link.Gateway, str], None],
    reason: str,
) -> None:
    service = open_to_members.service
    image_id = upload_image(os.urandom(2 * MIB), visibility='shared', owner='p1')
    _share(gateway, image_id, 'p2')
    gateway.hold(at_byte=MIB)
    request_id = _ask(service, 'p2', service.aggregate('all'), image_id)
    gateway.wait_for(4)

    change(gateway, image_id)
    gateway.release()

    request = service.wait(request_id)
    assert (request['status'], request['counts']) == ('failed', {'error': 4})
    assert all(
        image_id in task['reason'] and reason in task['reason']
        for task in service.tasks(request_id)
    )
    # The conductor fails a task before it refuses the publication: then its host cleans up.
    wait_until(lambda: not any(host.base_files() for host in service.hosts), 'nothing is left')


def test_hidden_image_needs_membership(
    open_to_members: Started, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    service = open_to_members.service
    image_id = upload_image(os.urandom(2 * MIB), visibility='shared', owner='p1')
    _share(gateway, image_id, 'p2')
    gateway.hold(at_byte=MIB)
    aggregate = service.aggregate('all')
    mine, theirs = (_ask(service, project, aggregate, image_id) for project in ('p1', 'p2'))
    gateway.wait_for(4)

    _hide(gateway, image_id)
    gateway.release()

    assert service.wait(mine)['counts'] == {'cached': 4}
    assert service.wait(theirs)['counts'] == {'error': 4}
    assert len(gateway.served(image_id)) == 4


@pytest.mark.parametrize('container_format', ['compressed', 'docker'])
def test_unbootable_image_fails_before_any_call(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway, container_format: str
) -> None:
    service = start().service
    image_id = upload_image(os.urandom(1024), container_format=container_format)

    request_id = service.cache(service.aggregate('all'), image_id)

    assert service.wait(request_id)['counts'] == {'error': 4}
    [(status, reason)] = service.outcomes(request_id)
    assert (status, f'container_format {container_format}' in str(reason)) == ('error', True)
    assert {task['attempts'] for task in service.tasks(request_id)} == {0}
    assert gateway.served(image_id) == []
