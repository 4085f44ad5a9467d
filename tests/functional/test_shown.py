# SPDX-License-Identifier: Apache-2.0
"""A working day with one request: made, watched, stopped halfway, and completed in the end.

The other features have their tests beside their failure cases: windows in
``test_following.py``, pins in ``test_pins.py``, estimates in ``test_asking.py``.
"""

import os
import re

import pytest

from nova_precache.standalone import glance as glance_server
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start
from tests.openstack import Site
from tests.service import wait_until
from tools.waiting import TIMEOUT_SECONDS

MIB = 1024**2
# Far more than the buffers of a connection hold.
BIG = 16 * MIB
MIDDLE = 2 * MIB


def test_request_watched_cancelled_and_retried(
    start: Start,
    gateway: site_link.Gateway,
    glance: glance_server.GlanceServer,
    upload_image: UploadImage,
    capsys: pytest.CaptureFixture[str],
) -> None:
    started = start(image_cache={'precache_concurrency': 4})
    service, site = started.service, Site(started.service, started.conf, capsys)
    done, cut, waiting = (upload_image(os.urandom(size)) for size in (MIB, BIG, MIB))
    service.aggregate('edge')
    gateway.hold(at_byte=MIDDLE)

    ask = ('precache', 'create', '--aggregate', 'edge', '--wait', done, cut, waiting)
    watcher = site.beside(*ask)
    gateway.wait_for(4)
    (request,) = site('precache', 'list', '--image', cut)
    site('precache', 'cancel', request['ID'])
    _, said = watcher.communicate(timeout=TIMEOUT_SECONDS)

    assert watcher.returncode == 1
    assert 'Total: cancelled, 12 of 12 done' in said
    assert '8 of 12 copies are not cached (3 images, 4 hosts):' in said
    assert [host.base_files() for host in service.hosts] == [
        [host.base_path(done).name] for host in service.hosts
    ]
    assert len(gateway.running()) == 4, 'it was not the cancel that ended them'
    gateway.release()
    wait_until(lambda: len(_sent(glance, cut)) == 4, 'Glance sends nothing any more')
    assert max(_sent(glance, cut)) < BIG

    retried = site('precache', 'retry', '--wait', request['ID'])

    assert (retried['status'], retried['counts']) == ('completed', {'cached': 12})
    wait_until(lambda: len(_sent(glance, cut) + _sent(glance, waiting)) == 12, 'all is logged')
    assert _sent(glance, done) == _sent(glance, waiting) == [MIB] * 4
    assert _sent(glance, cut)[4:] == [BIG] * 4
    assert {host.base_path(cut).stat().st_size for host in service.hosts} == {BIG}


def _sent(glance: glance_server.GlanceServer, image_id: str) -> list[int]:
    """Return the bytes of an image that Glance sent, by its log, which gets a line at the end."""
    line = re.compile(rf' GET /v2/images/{image_id}/file 20[06] (\d+) ')
    return [int(sent) for sent in line.findall(glance.access_log.read_text())]
