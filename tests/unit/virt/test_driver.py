# SPDX-License-Identifier: Apache-2.0
"""Which driver a name loads, and what the ones without a hypervisor do."""

import pytest

from nova_precache import conf as precache_conf, exception, model, transfer_control
from nova_precache.cache import layout
from nova_precache.image import fake as fake_images
from nova_precache.virt import driver, fake, libvirt


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('libvirt.LibvirtDriver', libvirt.LibvirtDriver),
        ('fake.FakeDriver', fake.FakeDriver),
        ('fake.FakeDriverWithCaching', fake.FakeDriverWithCaching),
    ],
)
def test_driver_loaded_by_name(name: str, kind: type) -> None:
    assert type(driver.load_driver(name, precache_conf.new([], []))) is kind


@pytest.mark.parametrize(
    'name',
    ['', 'libvirt', 'libvirt.NoDriver', 'nothing.Driver', 'os.system', '.', 'driver.CacheReport'],
)
def test_unknown_driver_error_names_option(name: str) -> None:
    with pytest.raises(exception.ConfigError, match=f'compute_driver {name!r}'):
        driver.load_driver(name, precache_conf.new([], []))


def test_driver_caches_nothing_by_default() -> None:
    plain = fake.FakeDriver(precache_conf.new([], []))
    plain.init_host()
    assert plain.capabilities['supports_cache_image'] is False
    assert plain.cache_report() == driver.CacheReport()
    plain.manage_image_cache()
    plain.remove_leftovers()
    assert plain.cached_images() == ()
    assert plain.discard_partial('i'), 'nothing is left'
    with pytest.raises(NotImplementedError):
        plain.cache_image(fake_images.FakeImageService(), 'i', ignore)
    with pytest.raises(exception.BackendUnsupported, match='FakeDriver cannot create root disks'):
        plain.create_root_disk(fake_images.FakeImageService(), 'i', 'instance')


def test_fake_driver_caches_image_once() -> None:
    images = fake_images.FakeImageService()
    image = images.add(b'data')
    caching = fake.FakeDriverWithCaching(precache_conf.new([], []))
    assert caching.capabilities['supports_cache_image'] is True
    assert not caching.cache_image(images, image.id, ignore).existing
    assert caching.cache_image(images, image.id, ignore).existing
    caching.manage_image_cache()
    assert [each.name for each in caching.cached_images()] == [layout.base_name(image.id)]


def test_stopped_fake_driver_does_nothing() -> None:
    images = fake_images.FakeImageService()
    image = images.add(b'data')
    caching = fake.FakeDriverWithCaching(precache_conf.new([], []))
    stopped = transfer_control.Control()
    stopped.stop(exception.ShuttingDown('stops'))
    with pytest.raises(exception.ShuttingDown):
        caching.cache_image(images, image.id, ignore, stopped)
    assert caching.cached_images() == []


def test_fake_driver_gives_failure_reason() -> None:
    caching = fake.FakeDriverWithCaching(precache_conf.new([], []))
    with pytest.raises(exception.ImageGone, match='could not be found'):
        caching.cache_image(fake_images.FakeImageService(), 'unknown', ignore)
    assert caching.cached_images() == []


def test_fake_driver_lists_images_with_times() -> None:
    images = fake_images.FakeImageService()
    image = images.add(b'data')
    caching = fake.FakeDriverWithCaching(precache_conf.new([], []))
    caching.cache_image(images, image.id, ignore)
    [before] = caching.cached_images()
    caching.cache_image(images, image.id, ignore)
    [after] = caching.cached_images()
    assert (before.size_bytes, before.used_by, before.image_id) == (4, 0, None)
    assert after.touched_at > before.touched_at
