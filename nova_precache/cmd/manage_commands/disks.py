# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage root-disk: create a root disk from the image cache, as a boot does."""

from oslo_config import cfg

from nova_precache import exception
from nova_precache.cmd import running
from nova_precache.transfer_control import Control
from nova_precache.virt import driver as virt_driver
from nova_precache.wiring import images as wiring_images


def create(conf: cfg.ConfigOpts) -> int:
    arguments = conf.command
    if arguments.on_host:
        conf.set_override('host', arguments.on_host)
    driver = virt_driver.load_driver(conf.compute_driver, conf)
    driver.init_host()
    size_bytes = None if arguments.size_gib is None else arguments.size_gib * 1024**3
    boot = Control(is_boot=True)
    interrupted = exception.Cancelled('interrupted: no root disk was created', keep_partial=True)
    running.on_stop_signals(lambda: boot.stop(interrupted))
    try:
        disk = driver.create_root_disk(
            wiring_images.of_boots(conf),
            arguments.image,
            arguments.instance,
            size_bytes,
            control=boot,
        )
    except exception.ImageUnauthorized as exc:
        if conf.glance.auth_type:
            raise
        raise exception.ConfigError(
            f'{exc}: the image is not in the cache, and [glance] auth_type is not set'
        ) from exc
    print(disk.path)
    return 0
