# SPDX-License-Identifier: Apache-2.0
"""Running conductors and computes apply their changed files after a SIGHUP."""

import os
import signal
from collections.abc import Iterable, Iterator

import pytest

from tests import service as doors
from tests.conftest import UploadImage
from tests.integration.conftest import CELLS, CONDUCTORS, Changes, Deployment

pytestmark = pytest.mark.integration

MIB = 1024 * 1024
# At this rate the image takes an hour.
CRAWL: Changes = {'image_cache': {'max_rate_bytes': 300}, 'DEFAULT': {'debug': 'true'}}
TWO_AT_ONCE: Changes = {'image_cache': {'precache_concurrency': 2}}


@pytest.fixture
def reloaded(deployment: Deployment) -> Iterator[Deployment]:
    """A deployment whose processes return to their own files afterwards."""
    yield deployment
    _reload(deployment, deployment.names)


def _reload(deployment: Deployment, names: Iterable[str], changes: Changes | None = None) -> None:
    for name in names:
        deployment.configure(name, changes)
        if name in deployment.processes:
            deployment.processes[name].send_signal(signal.SIGHUP)


def test_limits_change_under_running_transfers(
    reloaded: Deployment, upload_image: UploadImage
) -> None:
    data = os.urandom(MIB)
    image_id = upload_image(data)
    service, hosts = reloaded.service, [h for h in reloaded.hosts if h.cell == CELLS[0]]
    computes = [host.name for host in hosts]

    _reload(reloaded, computes, CRAWL)
    for name in computes:
        reloaded.wait_for_log(name, 'image_cache.max_rate_bytes changed from [None] to [300]')
    request_id = service.cache(service.aggregate('reloaded', tuple(hosts)), image_id)
    doors.wait_until(lambda: len(reloaded.claimed_hosts()) == 1, 'one host is claimed')
    _reload(reloaded, CONDUCTORS, TWO_AT_ONCE)
    doors.wait_until(lambda: len(reloaded.claimed_hosts()) == 2, 'and then another one')
    doors.wait_until(
        lambda: [task['status'] for task in service.tasks(request_id)] == ['downloading'] * 2,
        'both crawl',
    )
    _reload(reloaded, computes)
    request = service.wait(request_id)

    assert (request['status'], request['counts']) == ('completed', {'cached': 2})
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1]
    reloaded.assert_cached(image_id, data, hosts)
    assert all(' DEBUG ' in reloaded.log(name) for name in computes)
    reloaded.assert_tidy()
