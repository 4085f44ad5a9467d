# SPDX-License-Identifier: Apache-2.0
"""A host behind a link that stalls gives its slot to others, and resumes where it stopped."""

import os
import re

import sqlalchemy as sa

from nova_precache import conf as configuration
from nova_precache.db.engine import models, session
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.service import wait_until

MIB = 1024**2
OPTIONS = {
    'precache_concurrency': 1,
    'min_rate_bytes': 32 * 1024,
    'stall_seconds': 5,  # the other downloads must not seem slow on a busy machine
    'retry_max_delay_seconds': 600,
}


def _make_due(started: Started, host: str) -> None:
    """End the delay of a host."""
    database = session.connect(configuration.new(config_files=[started.conf]))
    try:
        for table in (models.Job, models.Task):
            due = sa.update(table).where(table.host == host).values(next_attempt_at=None)
            database.write(lambda s, due=due: s.execute(due))
    finally:
        database.dispose()


def test_stalled_host_gives_slot_and_resumes(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    data = os.urandom(4 * MIB)
    image_id = upload_image(data)
    started = start(image_cache=OPTIONS)
    service, hosts = started.service, started.service.hosts[:2]
    gateway.hold(at_byte=2 * MIB, most=1)

    request_id = service.cache(service.aggregate('edge', hosts), image_id)
    wait_until(
        lambda: (
            sorted(task['status'] for task in service.tasks(request_id)) == ['cached', 'retry_wait']
        ),
        'the other host has the image, and the slow one waits',
    )

    [slow] = [task for task in service.tasks(request_id) if task['status'] == 'retry_wait']
    assert slow['attempts'] == 0
    assert slow['bytes_done'] == 2 * MIB
    assert re.fullmatch(
        r'retry in (5\d\d|600) s: slower than 32\.0 KiB/s for 5 s \(0 B/s\); '
        r'2\.0 MiB of 4\.0 MiB are kept',
        slow['reason'],
    )
    assert gateway.running(), 'it was not the server that ended it'
    gateway.release()
    _make_due(started, slow['host'])
    request = service.wait(request_id)

    assert request['counts'] == {'cached': 2}
    assert [task['attempts'] for task in service.tasks(request_id)] == [1, 1]
    stalled, other, resumed = gateway.served(image_id)
    assert [each.requested_range for each in (stalled, other, resumed)] == [
        None,
        None,
        f'bytes={2 * MIB}-',
    ]
    assert (other.bytes_sent, resumed.bytes_sent) == (4 * MIB, 2 * MIB)
    [host] = [each for each in hosts if each.name == slow['host']]
    assert host.base_path(image_id).read_bytes() == data
