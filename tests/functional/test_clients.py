# SPDX-License-Identifier: Apache-2.0
"""The unmodified openstack command on the whole service: it must not notice a difference."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started

BIN = pathlib.Path(sys.executable).parent


class OpenStack:
    """The openstack command with the cloud that a standalone describes."""

    def __init__(self, started: Started) -> None:
        clouds = pathlib.Path(started.conf).parent / 'clouds.yaml'
        self._environment = {**os.environ, 'OS_CLIENT_CONFIG_FILE': str(clouds)}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [BIN / 'openstack', '--os-cloud', 'precache', *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def get(self, *arguments: str) -> Any:
        done = self.run(*arguments, '-f', 'json')
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def started(start: Start) -> Started:
    return start()


@pytest.fixture
def openstack(started: Started) -> OpenStack:
    return OpenStack(started)


def test_openstack_caches_image_by_name(
    started: Started, openstack: OpenStack, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(1024), name=f'named-{os.getpid()}')
    host = started.service.hosts[0]
    openstack.get('aggregate', 'create', 'rollout')
    shown = openstack.get('aggregate', 'add', 'host', 'rollout', host.name)
    assert shown['hosts'] == [host.name]

    done = openstack.run('aggregate', 'cache', 'image', 'rollout', f'named-{os.getpid()}')

    assert (done.returncode, done.stdout) == (0, ''), done.stderr
    (request,) = started.service.get('/requests')['requests']
    assert request['images'] == [image_id]
    assert started.service.wait(request['id'])['counts'] == {'cached': 1}


def test_openstack_caches_image_by_id(
    started: Started, openstack: OpenStack, upload_image: UploadImage
) -> None:
    image_id = upload_image(os.urandom(1024))
    aggregate_id = started.service.aggregate('by-id', started.service.hosts[:1])

    done = openstack.run('aggregate', 'cache', 'image', str(aggregate_id), image_id)

    assert done.returncode == 0, done.stderr
    (request,) = started.service.get('/requests')['requests']
    assert started.service.wait(request['id'])['counts'] == {'cached': 1}


def test_openstack_sets_shows_deletes_aggregate(openstack: OpenStack) -> None:
    openstack.get('aggregate', 'create', 'short-lived')

    done = openstack.run('aggregate', 'set', '--property', 'ssd=true', 'short-lived')
    assert done.returncode == 0, done.stderr
    assert openstack.get('aggregate', 'show', 'short-lived')['properties'] == {'ssd': 'true'}
    assert openstack.run('aggregate', 'delete', 'short-lived').returncode == 0
    assert openstack.get('aggregate', 'list') == []


def test_openstack_names_unknown_aggregate(openstack: OpenStack) -> None:
    done = openstack.run('aggregate', 'show', 'nowhere')

    assert done.returncode == 1
    assert 'nowhere' in done.stderr
