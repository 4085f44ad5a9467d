# SPDX-License-Identifier: Apache-2.0
"""The whole service, and Glance, under a real Keystone; real users with their commands."""

from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.integration.keystone_site import PRECACHER, Commands, Site
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
UNAUTHENTICATED = {
    'error': {
        'code': 401,
        'title': 'Unauthorized',
        'message': 'The request you have made requires authentication.',
    }
}


@pytest.fixture
def commands(site: Site) -> Commands:
    return Commands(site, site.admin)


# Commands


def test_nova_caches_image_on_own_aggregate(site: Site, commands: Commands) -> None:
    image_id = site.upload(site.admin, 'public')
    host = site.hosts[0]
    commands.catalog_names('/$(project_id)s')

    (made,) = commands.rows('nova', 'aggregate-create', 'racks')
    assert (made['Name'], made['Availability Zone'], made['Hosts']) == ('racks', '-', '')
    (filled,) = commands.rows('nova', 'aggregate-add-host', 'racks', host.name)
    assert filled == {**made, 'Hosts': f"'{host.name}'"}

    assert commands.output('nova', 'aggregate-cache-images', 'racks', image_id) == ''

    assert site.outcome(image_id) == {'cached': 1}
    assert host.base_path(image_id).exists()


def test_nova_manages_and_deletes_aggregate(site: Site, commands: Commands) -> None:
    host = site.hosts[0]
    aggregate_id = str(site.aggregate('old', host))
    commands.catalog_names('')

    listed = {row['Id']: row['Name'] for row in commands.rows('nova', 'aggregate-list')}
    assert listed[aggregate_id] == 'old'
    (shown,) = commands.rows('nova', 'aggregate-show', 'old')
    assert (shown['Id'], shown['Hosts']) == (aggregate_id, f"'{host.name}'")
    (emptied,) = commands.rows('nova', 'aggregate-remove-host', 'old', host.name)
    assert emptied == {**shown, 'Hosts': ''}

    said = commands.output('nova', 'aggregate-delete', 'old')

    assert said == f'Aggregate {aggregate_id} has been successfully deleted.\n'
    assert aggregate_id not in {row['Id'] for row in commands.rows('nova', 'aggregate-list')}


@pytest.mark.parametrize(
    ('suffix', 'image'),
    [('', 'image-{}'), ('/$(project_id)s', '{}')],
    ids=['by-name', 'by-id-with-the-project-in-the-url'],
)
def test_openstack_caches_image_through_catalog(
    site: Site, commands: Commands, suffix: str, image: str
) -> None:
    image_id = site.upload(site.admin, 'private')
    name = f'aggregate-of-{image_id}'
    site.aggregate(name, *site.hosts)
    commands.catalog_names(suffix)

    said = commands.output('openstack', 'aggregate', 'cache', 'image', name, image.format(image_id))

    assert said == ''
    assert site.outcome(image_id) == {'cached': 2}
    assert all(host.base_path(image_id).stat().st_size == 1024 for host in site.hosts)


def test_openstack_names_forbidden_caller(site: Site) -> None:
    member = Commands(site, site.user('member'))
    member.catalog_names('')

    done = member.run('openstack', 'aggregate', 'list')

    assert done.returncode == 1
    assert "Policy doesn't allow os_compute_api:os-aggregates:index to be performed" in done.stderr
    assert '403' in done.stderr


# Permissions


@pytest.mark.parametrize(
    ('role', 'aggregates', 'requests'),
    [
        ('admin', 200, 200),
        ('manager', 403, 200),
        ('member', 403, 200),
        ('reader', 403, 200),
        ('service', 403, 403),
        (PRECACHER, 200, 403),
        ('dreamer', 403, 403),
    ],
)
def test_policy_decides_rights_of_role(
    site: Site, role: str, aggregates: int, requests: int
) -> None:
    token = site.token(site.user(role))
    assert site.ask(token, 'GET', '/v2.1/os-aggregates').status_code == aggregates
    assert site.ask(token, 'GET', '/v1/requests').status_code == requests
    made = site.ask(token, 'POST', '/v2.1/os-aggregates', {'aggregate': {'name': f'of-{role}'}})
    assert made.status_code == (200 if role == 'admin' else 403)


def test_owner_caches_own_private_image(site: Site) -> None:
    owner = site.user('member', PRECACHER)
    image_id = site.upload(owner, 'private')
    token = site.token(owner)

    answer = site.cache(token, site.aggregate('private', site.hosts[0]), image_id)

    assert (answer.status_code, answer.text) == (202, '')
    assert site.outcome(image_id) == {'cached': 1}
    path = '/v1/requests/' + answer.headers['Location'].rsplit('/', 1)[1]
    seen = site.ask(token, 'GET', path).json()['request']
    assert (seen['status'], seen['project_id']) == ('completed', site.keystone.project_id(owner))
    stranger = site.token(site.user('member'))
    assert site.ask(stranger, 'GET', path).status_code == 404


def test_other_projects_private_image_not_found(site: Site) -> None:
    image_id = site.upload(site.user('member'), 'private')
    stranger = site.token(site.user('member', PRECACHER))

    answer = site.cache(stranger, site.aggregate('foreign', site.hosts[0]), image_id)

    assert answer.status_code == 400
    assert answer.json()['badRequest']['message'] == f'Image {image_id} could not be found.'
    assert site.requests_for(image_id) == []
    assert site.gateway.served(image_id) == []


# Valid tokens


def test_version_documents_are_public(site: Site) -> None:
    for path in ('/', '/v2.1', '/v2.1/', '/v1', '/v1/'):
        for token in (None, 'garbage'):
            assert site.ask(token, 'GET', path).status_code == 200, path


def _revoked(site: Site) -> str:
    token = site.token(site.user('admin'))
    site.keystone.revoke(token)
    return token


def _of_a_disabled_user(site: Site) -> str:
    user = site.user('admin')
    token = site.token(user)
    site.keystone.disable(user)
    return token


@pytest.mark.parametrize(
    'token',
    [lambda site: None, lambda site: 'garbage', lambda site: '', _revoked, _of_a_disabled_user],
    ids=['none', 'garbage', 'empty', 'revoked', 'disabled'],
)
@pytest.mark.parametrize('path', ['/v2.1/os-aggregates', '/v2.1/abc/os-aggregates', '/v1/requests'])
def test_invalid_token_is_refused(
    site: Site, token: Callable[[Site], str | None], path: str
) -> None:
    answer = site.ask(token(site), 'GET', path)
    assert answer.status_code == 401
    assert answer.headers['WWW-Authenticate'] == f'Keystone uri="{site.keystone.url}"'
    assert answer.headers['Content-Type'] == 'application/json'
    assert answer.json() == UNAUTHENTICATED


def test_roles_come_from_token_not_headers(site: Site) -> None:
    forged = {'X-Roles': 'admin', 'X-Is-Admin-Project': 'True', 'X-User-Id': 'somebody'}
    token = site.token(site.user('member'))
    assert site.ask(token, 'GET', '/v2.1/os-aggregates', headers=forged).status_code == 403


def test_path_project_must_match_token(site: Site) -> None:
    token, own = site.token(site.admin), site.keystone.project_id(site.admin)
    assert site.ask(token, 'GET', f'/v2.1/{own}/os-aggregates').status_code == 200
    answer = site.ask(token, 'GET', '/v2.1/abc/os-aggregates')
    assert answer.status_code == 400
    assert answer.json()['badRequest']['message'] == (
        f"Malformed request URL: URL's project_id 'abc' doesn't match Context's project_id '{own}'"
    )


@pytest.mark.parametrize('scope', ['system', 'unscoped'])
def test_unscoped_token_is_refused(site: Site, scope: str) -> None:
    user = site.user('admin')
    site.keystone.make_admin_of_system(user)
    token = site.token(user, scope)
    for path in ('/v2.1/os-aggregates', '/v1/requests'):
        assert site.ask(token, 'GET', path).status_code == 403
    answer = site.ask(token, 'GET', '/v2.1/abc/os-aggregates')
    assert answer.status_code == 400
    assert answer.json()['badRequest']['message'] == (
        "Malformed request URL: URL's project_id 'abc' doesn't match Context's project_id 'None'"
    )


@pytest.mark.parametrize(
    ('role', 'status'), [('service', 200), ('member', 401), (None, 401)], ids=str
)
def test_service_token_needs_service_role(site: Site, role: str | None, status: int) -> None:
    service_token = site.token(site.user(role)) if role else 'garbage'
    answer = site.ask(
        site.token(site.admin),
        'GET',
        '/v2.1/os-aggregates',
        headers={'X-Service-Token': service_token},
    )
    assert answer.status_code == status


# The service's own credentials


def test_download_outlives_its_token(site: Site) -> None:
    image_id = site.upload(site.admin, 'private', 4 * MIB)
    host = site.hosts[0]
    site.gateway.hold(at_byte=MIB)
    site.gateway.cuts.append(2 * MIB)
    aggregate_id = site.aggregate('long', host)
    assert site.cache(site.token(site.admin), aggregate_id, image_id).status_code == 202
    site.gateway.wait_for(1)

    (token,) = site.gateway.download_tokens(image_id)
    site.keystone.revoke(token)
    site.gateway.release()

    assert site.outcome(image_id) == {'cached': 1}
    assert host.base_path(image_id).stat().st_size == 4 * MIB
    assert [task['attempts'] for task in site.tasks(image_id)] == [1]
    # The first one is refused when the image is looked up again before the rest is read.
    (fresh,) = site.gateway.download_tokens(image_id)[1:]
    assert fresh != token


def test_killed_keystone_costs_no_request(site: Site) -> None:
    images = [site.upload(site.admin, 'private', 4 * MIB) for _ in range(2)]
    aggregate_id = site.aggregate('without Keystone', *site.hosts)
    token = site.token(site.admin)
    site.gateway.hold(at_byte=MIB)
    site.gateway.cuts.append(2 * MIB)
    for image_id in images:
        assert site.cache(token, aggregate_id, image_id).status_code == 202
    site.gateway.wait_for(1)

    site.keystone.kill()
    try:
        answer = site.cache(token, aggregate_id, images[0])
        # The cut downloads cannot resume: Glance asks Keystone about each token.
        site.gateway.release()
        wait_until(lambda: _conductor_missed_keystone(site), 'the conductor wants a token')
    finally:
        site.keystone.start()
    outcomes = [site.outcome(image_id) for image_id in images]

    assert answer.status_code == 503
    assert 'The Keystone service is temporarily unavailable.' in answer.text
    assert outcomes == [{'cached': 2}] * 2
    tasks = [task for image_id in images for task in site.tasks(image_id)]
    assert [task['reason'] for task in tasks] == [None] * 4
    served = [each for image_id in images for each in site.gateway.served(image_id)]
    assert sum(each.bytes_sent for each in served) == 4 * 4 * MIB  # no byte was sent twice
    for host in site.hosts:
        sizes = [host.base_path(image_id).stat().st_size for image_id in images]
        assert sizes == [4 * MIB] * 2


def _conductor_missed_keystone(site: Site) -> bool:
    return 'Keystone: Unable to establish connection' in site.logs()['conductor-control']


def test_image_deactivated_during_download_unpublished(
    site: Site,
) -> None:
    owner = site.user('member', PRECACHER)
    image_id = site.upload(owner, 'private', 4 * MIB)
    host = site.hosts[0]
    site.gateway.hold(at_byte=MIB)
    aggregate_id = site.aggregate('deactivated', host)
    assert site.cache(site.token(owner), aggregate_id, image_id).status_code == 202
    site.gateway.wait_for(1)

    _ask_glance(site, site.token(site.admin), 'POST', f'{image_id}/actions/deactivate')
    site.gateway.release()

    assert site.outcome(image_id) == {'error': 1}
    (task,) = site.tasks(image_id)
    assert (task['reason'], task['attempts']) == (f'Image {image_id} is deactivated', 1)
    assert not host.base_path(image_id).exists()
    # Glance sends such a user the data to the last byte.
    assert [each.bytes_sent for each in site.gateway.served(image_id)] == [4 * MIB]


def test_compute_token_only_reads_images(site: Site) -> None:
    owner = site.user('member', PRECACHER)
    image_id, other_id = (site.upload(owner, 'private') for _ in range(2))
    site.cache(site.token(owner), site.aggregate('read only', site.hosts[0]), image_id)
    assert site.outcome(image_id) == {'cached': 1}
    (token,) = site.gateway.download_tokens(image_id)
    before = _ask_glance(site, site.token(owner), 'GET', other_id)

    assert _ask_glance(site, token, 'GET', other_id) == before
    rename = [{'op': 'replace', 'path': '/name', 'value': 'mine'}]
    for method, path, body in (
        ('DELETE', other_id, None),
        ('PATCH', other_id, rename),
        ('POST', f'{other_id}/actions/deactivate', None),
        ('PUT', f'{other_id}/tags/mine', None),
    ):
        with pytest.raises(requests.HTTPError, match='403'):
            _ask_glance(site, token, method, path, body)

    assert _ask_glance(site, site.token(owner), 'GET', other_id) == before


def _ask_glance(site: Site, token: str, method: str, path: str, body: Any = None) -> Any:
    """Send a request about an image to Glance, which must accept it."""
    headers = {'X-Auth-Token': token}
    if method == 'PATCH':
        headers['Content-Type'] = 'application/openstack-images-v2.1-json-patch'
    url = f'{site.glance.url}/v2/images/{path}'
    answer = requests.request(method, url, json=body, headers=headers, timeout=TIMEOUT_SECONDS)
    answer.raise_for_status()
    return answer.json() if answer.content else None


def test_computes_hold_no_credentials(site: Site) -> None:
    for host in site.hosts:
        configuration = (site.directory / f'{host.name}.conf').read_text()
        assert 'auth_' not in configuration
        assert '[database]' not in configuration


def test_no_log_holds_secrets(site: Site) -> None:
    def whole_story() -> dict[str, Any]:
        image_id = site.upload(site.admin, 'public')
        site.ask(_revoked(site), 'GET', '/v2.1/os-aggregates')
        site.cache(site.token(site.admin), site.aggregate('story', site.hosts[0]), image_id)
        return site.outcome(image_id)

    assert whole_story() == {'cached': 1}
    secrets, logs = site.secrets(), site.logs()
    assert len(secrets) > 5
    assert sorted(logs) == ['api-control', 'compute-host1', 'compute-host2', 'conductor-control']
    assert 'keystonemiddleware' in logs['api-control']
    assert 'X-Auth-Token' in logs['conductor-control']
    told = {(name, secret) for name, log in logs.items() for secret in secrets if secret in log}
    assert told == set()
