# SPDX-License-Identifier: Apache-2.0
"""The unmodified nova and openstack commands, logged in through a real Keystone.

They find the service and Glance in its catalog, as on a site. The service itself
takes any token, so this is about what clients do, not about who may do it.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nova_precache import model
from nova_precache.standalone import glance as glance_server
from tests import keystone as keystone_server
from tests.conftest import UploadImage
from tests.functional.conftest import Started, starting

BIN = pathlib.Path(sys.executable).parent


class Clients:
    """The commands of one user; a site may have its project in the URL of compute or not."""

    def __init__(self, keystone: keystone_server.KeystoneServer, compute_url: str) -> None:
        self._keystone = keystone
        self._compute_url = compute_url
        self._environment = keystone.environment(keystone.make_user('admin'))

    def catalog_names(self, suffix: str) -> None:
        """Have the catalog name the URL of compute with something at its end."""
        self._keystone.register('compute', self._compute_url + suffix)

    def run(self, *command: str) -> str:
        """Run a command, which must succeed, and give what it printed."""
        done = subprocess.run(
            [BIN / command[0], *command[1:]],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rows(self, *command: str) -> list[dict[str, str]]:
        """Run a command that prints a table among other things, and give its rows."""
        lines = [line for line in self.run(*command).splitlines() if line.startswith('|')]
        names, *rows = [[cell.strip() for cell in line[1:-1].split('|')] for line in lines]
        return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture(scope='module')
def started(
    glance: glance_server.GlanceServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    with starting(tmp_path_factory.mktemp('catalog'), glance.url) as start:
        yield start()


@pytest.fixture(scope='module')
def clients(
    started: Started,
    glance: glance_server.GlanceServer,
    keystone: keystone_server.KeystoneServer,
) -> Clients:
    keystone.register('image', glance.url)
    return Clients(keystone, started.service.compute_url)


def _outcome(started: Started, image_id: str) -> dict[str, int]:
    """Wait for the one request for an image, and count its tasks by status."""
    (request,) = (
        request
        for request in started.service.get('/requests')['requests']
        if request['images'] == [image_id]
    )
    ended = started.service.wait(request['id'])
    assert ended['status'] == model.RequestStatus.COMPLETED
    return dict(ended['counts'])


def test_nova_caches_an_image_by_id_on_an_aggregate_that_it_made(
    started: Started, clients: Clients, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(1024))
    host = started.service.hosts[0]
    clients.catalog_names('/$(project_id)s')

    (made,) = clients.rows('nova', 'aggregate-create', 'racks')
    assert (made['Name'], made['Availability Zone'], made['Hosts']) == ('racks', '-', '')
    (filled,) = clients.rows('nova', 'aggregate-add-host', 'racks', host.name)
    assert filled == {**made, 'Hosts': f"'{host.name}'"}

    assert clients.run('nova', 'aggregate-cache-images', 'racks', image_id) == ''

    assert _outcome(started, image_id) == {'cached': 1}
    assert host.base_path(image_id).exists()


def test_nova_lists_shows_empties_and_deletes_an_aggregate(
    started: Started, clients: Clients
) -> None:
    host = started.service.hosts[0]
    aggregate_id = str(started.service.aggregate('old', (host,)))
    clients.catalog_names('')

    listed = {row['Id']: row['Name'] for row in clients.rows('nova', 'aggregate-list')}
    assert listed[aggregate_id] == 'old'
    (shown,) = clients.rows('nova', 'aggregate-show', 'old')
    assert (shown['Id'], shown['Hosts']) == (aggregate_id, f"'{host.name}'")
    (emptied,) = clients.rows('nova', 'aggregate-remove-host', 'old', host.name)
    assert emptied == {**shown, 'Hosts': ''}

    said = clients.run('nova', 'aggregate-delete', 'old')

    assert said == f'Aggregate {aggregate_id} has been successfully deleted.\n'
    assert aggregate_id not in {row['Id'] for row in clients.rows('nova', 'aggregate-list')}


@pytest.mark.parametrize('suffix', ['', '/$(project_id)s'], ids=['plain', 'project-in-url'])
def test_openstack_caches_an_image_by_name_through_the_catalog(
    started: Started, clients: Clients, upload_image: UploadImage, suffix: str
) -> None:
    image_id = upload_image(os.urandom(1024))
    name = f'aggregate-of-{image_id}'
    started.service.aggregate(name, started.service.hosts[:2])
    clients.catalog_names(suffix)

    said = clients.run('openstack', 'aggregate', 'cache', 'image', name, f'test-{image_id}')

    assert said == ''
    assert _outcome(started, image_id) == {'cached': 2}
