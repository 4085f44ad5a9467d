# SPDX-License-Identifier: Apache-2.0
"""A libvirt driver over a temporary instances path."""

import pathlib
from collections.abc import Callable

import pytest

from nova_precache import conf as precache_conf
from nova_precache.image import fake
from nova_precache.virt import libvirt

MakeDriver = Callable[..., libvirt.LibvirtDriver]


@pytest.fixture
def images() -> fake.FakeImageService:
    return fake.FakeImageService()


@pytest.fixture
def instances_path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / 'instances'


@pytest.fixture
def make_driver(instances_path: pathlib.Path, qemu_img: str) -> MakeDriver:
    """Return a function that starts a driver with options; ``group__name`` is one of a group."""

    def make(**options: object) -> libvirt.LibvirtDriver:
        conf = precache_conf.new([], [])
        conf.set_override('instances_path', str(instances_path))
        conf.set_override('reserved_disk_bytes', 0, 'image_cache')
        for name, value in options.items():
            group, _, option = name.rpartition('__')
            conf.set_override(option, value, group or None)
        driver = libvirt.LibvirtDriver(conf)
        driver.init_host()
        return driver

    return make
