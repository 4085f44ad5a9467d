# SPDX-License-Identifier: Apache-2.0
"""An image that was cached, grew old and was purged is cached again on request."""

import contextlib
import os
import pathlib
import time

from nova_precache import conf as configuration
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images as wiring_images
from tests import gateway as site_link
from tests.conftest import UploadImage
from tests.functional.conftest import Start, Started
from tests.service import Host, wait_until

MIB = 1024**2
DAY_SECONDS = 86400


def _age(path: pathlib.Path) -> None:
    """Make a base file old enough to expire."""
    then = time.time() - 2 * DAY_SECONDS
    os.utime(path, (then, then))


def _is_purged(path: pathlib.Path) -> bool:
    """Return whether a base file is gone; age a young one: a round that saw its disk marks it."""
    with contextlib.suppress(FileNotFoundError):
        if _is_young(path):
            _age(path)
    return not path.exists()


def _is_young(path: pathlib.Path) -> bool:
    return time.time() - path.stat().st_mtime < DAY_SECONDS


def _boot(started: Started, host: Host, image_id: str, instance: str) -> pathlib.Path:
    conf = configuration.new(config_files=[started.conf])
    conf.set_override('host', host.name)
    driver = virt_driver.load_driver('libvirt.LibvirtDriver', conf)
    disk = driver.create_root_disk(wiring_images.of_service(conf), image_id, instance, None)
    return pathlib.Path(disk.path)


def test_expired_image_cached_again(
    start: Start, upload_image: UploadImage, gateway: site_link.Gateway
) -> None:
    wanted, used = (upload_image(os.urandom(MIB)) for _ in range(2))
    started = start(image_cache={'manager_interval': 1})
    service, host = started.service, started.service.hosts[0]
    aggregate_id = service.aggregate('rollout', (host,))
    assert service.wait(service.cache(aggregate_id, wanted, used))['counts'] == {'cached': 2}
    disk = _boot(started, host, used, 'vm-1')

    _age(host.base_path(used))
    _age(host.base_path(wanted))
    wait_until(lambda: not host.base_path(wanted).exists(), 'the unused image is purged')
    wait_until(lambda: _is_young(host.base_path(used)), 'the used image is marked')

    assert host.base_files() == [host.base_path(used).name]
    assert service.wait(service.cache(aggregate_id, wanted, used))['counts'] == {
        'cached': 1,
        'existing': 1,
    }
    assert len(gateway.served(wanted)) == 2
    assert len(gateway.served(used)) == 1

    disk.unlink()
    wait_until(lambda: _is_purged(host.base_path(used)), 'the image used before is purged')
    assert host.base_files() == [host.base_path(wanted).name]
