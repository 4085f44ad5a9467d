# SPDX-License-Identifier: Apache-2.0
"""Guests of a stock Nova boot from the images cached for them, on a real libvirtd.

QEMU and the agents run as users of their own, neither of which is root: libvirt changes the
owner of a booting guest's base file to QEMU's user, and never changes it back.
"""

import os
import time

import pytest

from tests.service import wait_until
from tests.slow.conftest import FLAVOR, MIB, MINIMUM_AGE_SECONDS, Cloud
from tools import tour
from tools.servers import libvirtd

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize('agents', [False, True], ids=['by nova-compute', 'by an agent'])
def test_guest_boots_cached_image_without_glance(cloud: Cloud, agents: bool) -> None:
    cloud.need(agents=agents)
    image_id = cloud.new_image()

    assert cloud.outcome(cloud.precache(image_id, cloud.host)) == ('cached', None)
    assert cloud.downloads(image_id) == 1
    guest = cloud.boot(image_id, FLAVOR, cloud.host)

    assert cloud.downloads(image_id) == 1
    assert guest.host == cloud.host
    assert guest.files() == [guest.disk, tour.base_file(cloud.host, image_id)]


def test_boot_during_download_shares_it(cloud: Cloud) -> None:
    cloud.need(agents=True)
    image_id = cloud.new_image()
    cloud.gateway.hold(at_byte=MIB)
    request = cloud.precache(image_id, cloud.host)
    cloud.gateway.wait_for(1)

    server_id = cloud.create_server(image_id, FLAVOR, cloud.host)
    wait_until(
        lambda: cloud.server(server_id)['OS-EXT-STS:task_state'] == 'spawning',
        'the host works on the guest',
    )
    assert cloud.get(cloud.token(), request)['request']['status'] == 'running'
    cloud.gateway.release()

    assert cloud.outcome(request) == ('cached', None)
    guest = cloud.wait_for_guest(server_id)
    guest.wait_for_line()
    assert cloud.downloads(image_id) == 1


def test_pin_outlasts_nova_cache_ageing(
    cloud: Cloud,
) -> None:
    cloud.need(agents=True)
    host, pinned = cloud.ageing, cloud.new_image()
    assert cloud.outcome(cloud.precache(pinned, host)) == ('cached', None)
    cloud.pin(pinned, host)
    cloud.delete_server(cloud.boot(pinned, FLAVOR, host).id)
    file = tour.base_file(host, pinned)
    assert file.owner() == libvirtd.QEMU_USER
    used_at = file.stat().st_mtime

    other = cloud.new_image()
    assert cloud.outcome(cloud.precache(other, host)) == ('cached', None)
    removed = tour.base_file(host, other)
    wait_until(lambda: not removed.exists(), 'Nova has removed it', 3 * MINIMUM_AGE_SECONDS)

    assert file.stat().st_mtime > used_at
    assert file.owner() == libvirtd.QEMU_USER
    assert cloud.downloads(pinned) == 1


def test_booted_image_kept_only_with_capability(
    cloud: Cloud,
) -> None:
    cloud.need(agents=True)
    host, image_id = cloud.host, cloud.new_image()
    assert cloud.outcome(cloud.precache(image_id, host)) == ('cached', None)
    cloud.delete_server(cloud.boot(image_id, FLAVOR, host).id)
    file = tour.base_file(host, image_id)
    old = time.time() - MINIMUM_AGE_SECONDS
    os.utime(file, (old, old))

    with cloud.agent_with(host, ['dac_read_search']):
        status, reason = cloud.outcome(cloud.precache(image_id, host))
        assert status == 'error'
        cannot = f'present, but cannot be kept: owned by {libvirtd.QEMU_USER}'
        assert str(reason).startswith(cannot)
        pin = cloud.pin(image_id, host)
        wait_until(lambda: 'cannot be kept' in (cloud.why_not_kept(pin) or ''), 'the pin says so')
        assert file.stat().st_mtime == pytest.approx(old, abs=1)

    wait_until(lambda: file.stat().st_mtime > old + MINIMUM_AGE_SECONDS, 'it is kept')
    wait_until(lambda: cloud.why_not_kept(pin) is None, 'nothing stands in the way of the pin')
    assert cloud.downloads(image_id) == 1
