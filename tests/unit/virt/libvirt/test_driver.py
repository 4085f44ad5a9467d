# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: real images, from a real Glance, under the names that Nova looks for."""

import datetime
import errno
import hashlib
import os
import pathlib
import shutil
import stat
import time
import uuid

import pytest

from nova_precache import conf as precache_conf, exception, model
from nova_precache.cache import boot_signal
from nova_precache.download import source, stall
from nova_precache.image import fake, glance as glance_images
from nova_precache.standalone.glance import GlanceServer
from nova_precache.transfer_control import Control
from nova_precache.virt import driver, libvirt
from nova_precache.virt.libvirt import driver as driver_module
from tests import disk_images
from tests.conftest import UploadImage
from tests.unit.virt.libvirt.conftest import MakeDriver


def ignore(progress: model.Progress) -> None:
    """Ignore progress."""


def sha1(image_id: str) -> str:
    return hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()


def test_glance_image_cached_as_converted(
    make_driver: MakeDriver,
    instances_path: pathlib.Path,
    glance: GlanceServer,
    upload_image: UploadImage,
    tmp_path: pathlib.Path,
) -> None:
    path = disk_images.converted(tmp_path / 'image', 'qcow2', size_bytes=64 * disk_images.MIB)
    image_id = upload_image(path, disk_format='qcow2')
    images = service_of(glance)
    result = make_driver().cache_image(images, image_id, ignore)
    assert (result.existing, result.bytes_done) == (False, path.stat().st_size)
    assert os.listdir(instances_path / '_base') == [sha1(image_id)]
    base = instances_path / '_base' / sha1(image_id)
    assert base.read_bytes() == disk_images.as_raw(path, 'qcow2')
    assert stat.S_IMODE(base.stat().st_mode) == 0o644
    assert make_driver().cache_image(images, image_id, ignore).existing
    assert glance.served(image_id) == 1


def service_of(server: GlanceServer) -> glance_images.GlanceImageService:
    return glance_images.GlanceImageService.with_token(
        glance_images.GlanceSettings(), endpoint=server.url, token=None
    )


@pytest.mark.parametrize(('images_type', 'supports'), [('default', True), ('rbd', False)])
def test_capabilities_follow_options_of_host(
    make_driver: MakeDriver, images_type: str, supports: bool
) -> None:
    made = make_driver(
        libvirt__images_type=images_type,
        force_raw_images=False,
        image_cache__reserved_disk_bytes=77,
    )

    assert made.capabilities == {
        'supports_cache_image': supports,
        'force_raw_images': False,
        'reserved_disk_bytes': 77,
    }


@pytest.mark.parametrize('images_type', ['lvm', 'rbd', 'ploop'])
def test_backend_without_files_unsupported(
    make_driver: MakeDriver, instances_path: pathlib.Path, images_type: str
) -> None:
    without = make_driver(libvirt__images_type=images_type)
    images = fake.FakeImageService()
    with pytest.raises(exception.BackendUnsupported, match=f'images_type {images_type}'):
        without.cache_image(images, images.add(b'data').id, ignore)
    with pytest.raises(exception.BackendUnsupported, match=f'images_type {images_type}'):
        without.create_root_disk(images, images.add(b'data').id, 'instance')
    assert without.cache_report() == driver.CacheReport()
    assert not instances_path.exists()


def test_start_creates_directories_and_sweeps(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    base = instances_path / '_base'
    base.mkdir(parents=True)
    (base / f'{sha1("i")}.{uuid.uuid4().hex}.part').write_bytes(b'half')
    (base / sha1('i')).write_bytes(b'whole')
    make_driver()
    assert os.listdir(base) == [sha1('i')]
    assert stat.S_IMODE((instances_path / 'locks').stat().st_mode) == 0o755


def test_shared_instances_path_reports_same_store(
    make_driver: MakeDriver, images: fake.FakeImageService
) -> None:
    first, second = make_driver(), make_driver()
    first.cache_image(images, images.add(disk_images.content(disk_images.MIB)).id, ignore)
    report = second.cache_report()
    assert report.store_id == first.cache_report().store_id
    assert uuid.UUID(report.store_id)
    assert report.cache_bytes is not None
    assert report.cache_bytes >= disk_images.MIB
    assert report.free_bytes


def test_missing_cache_not_reported(make_driver: MakeDriver, instances_path: pathlib.Path) -> None:
    started = make_driver()
    os.rmdir(instances_path / '_base')
    assert started.cache_report() == driver.CacheReport()


def test_removed_cache_recreated_and_empty(
    make_driver: MakeDriver,
    images: fake.FakeImageService,
    instances_path: pathlib.Path,
) -> None:
    image, started = images.add(disk_images.content(disk_images.MIB)), make_driver()
    started.cache_image(images, image.id, ignore)
    report = started.cache_report()
    shutil.rmtree(instances_path / '_base')
    started.cache_report()

    assert started.cached_images() == []
    assert started.cache_report().store_id == report.store_id
    assert not started.cache_image(images, image.id, ignore).existing


def test_lost_mount_reported_once_and_untouched(
    make_driver: MakeDriver, instances_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = make_driver()
    shutil.rmtree(instances_path)
    instances_path.mkdir()
    for _ in range(3):
        assert started.cache_report() == driver.CacheReport()
        with pytest.raises(exception.StorageError):
            started.cached_images()
        with pytest.raises(exception.StorageError):
            started.manage_image_cache()
        with pytest.raises(exception.StorageError):
            started.discard_partial('image')
    assert os.listdir(instances_path) == []
    [line] = [each for each in caplog.messages if 'is missing and is not recreated' in each]
    assert str(instances_path / '.nova-precache-store-id') in line


def test_host_without_store_id_still_reports(
    make_driver: MakeDriver, instances_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    started = make_driver()
    (instances_path / '.nova-precache-store-id').unlink()
    monkeypatch.setattr('nova_precache.files.create_whole', full)
    assert started.cache_report() == driver.CacheReport()


def test_unusable_instances_path_reported(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    instances_path.write_text('a file')
    with pytest.raises(exception.ConfigError, match='instances_path cannot be used'):
        make_driver()


def test_missing_qemu_img_reported(
    make_driver: MakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('PATH', '/nonexistent')
    with pytest.raises(exception.ConfigError, match='qemu-img is not installed'):
        make_driver()


def test_options_reach_their_parts(
    make_driver: MakeDriver, instances_path: pathlib.Path, images: fake.FakeImageService
) -> None:
    data = disk_images.content(disk_images.MIB)
    unknown = images.add(data, hash_algo=None, hash_value=None, checksum=None)
    lenient = make_driver(
        image_cache__allow_unverified_images=True, image_cache__subdirectory_name='other'
    )
    lenient.cache_image(images, unknown.id, ignore)
    assert os.listdir(instances_path / 'other') == [sha1(unknown.id)]
    full = make_driver(image_cache__reserved_disk_bytes=1024**5)
    with pytest.raises(exception.NotEnoughSpace):
        full.cache_image(images, images.add(data).id, ignore)


def test_oversized_disk_is_refused(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    strict = make_driver(image_cache__max_virtual_size_bytes=disk_images.MIB - 1)
    with pytest.raises(exception.UnsafeImage, match='max_virtual_size_bytes'):
        strict.cache_image(images, image.id, ignore)
    assert os.listdir(instances_path / '_base') == []


def test_only_precache_limited_and_stoppable(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    slow = make_driver(image_cache__max_rate_bytes=2048)  # the download would take 8 minutes
    control = Control()
    stopped = exception.Cancelled('not wanted')
    with pytest.raises(exception.Cancelled):
        slow.cache_image(images, image.id, lambda progress: control.stop(stopped), control)
    assert os.listdir(instances_path / '_base') == []
    assert not slow.create_root_disk(images, image.id, 'instance').image_existing


def test_precache_yields_to_boot_on_host(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    told: list[int] = []
    elsewhere = boot_signal.WaitingBoots(str(instances_path / 'locks'))
    made = make_driver()
    with elsewhere.wait():
        made.cache_image(images, image.id, lambda progress: told.append(progress.bytes_done))
    assert told[0] < disk_images.MIB // 2, 'the first bytes came at once'


# Unfinished downloads


@pytest.fixture
def unfinished(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> str:
    """The id of an image whose download was interrupted in the middle."""
    image = images.add(disk_images.content(4 * disk_images.MIB))
    control = Control()

    def stop(progress: model.Progress) -> None:
        if progress.bytes_done >= 2 * disk_images.MIB:
            control.stop(exception.ShuttingDown('stops'))

    with pytest.raises(exception.ShuttingDown):
        make_driver().cache_image(images, image.id, stop, control)
    assert len(os.listdir(instances_path / '_base')) == 2
    return image.id


def test_partial_is_resumed(
    make_driver: MakeDriver, images: fake.FakeImageService, unfinished: str
) -> None:
    make_driver().manage_image_cache()
    make_driver().cache_image(images, unfinished, ignore)
    [(_, first), (_, second)] = images.opens
    assert first == 0
    assert second >= 2 * disk_images.MIB


@pytest.mark.parametrize('when', ['init_host', 'manage_image_cache', 'remove_leftovers'])
@pytest.mark.parametrize(
    ('options', 'leaves'),
    [
        ({}, False),
        ({'image_cache__remove_unused_base_images': False}, False),
        ({'image_cache__partial_max_age_seconds': 10**6}, True),
    ],
)
def test_old_partial_expires_beside_nova_compute(
    make_driver: MakeDriver,
    instances_path: pathlib.Path,
    tmp_path: pathlib.Path,
    unfinished: str,
    when: str,
    options: dict[str, object],
    leaves: bool,
) -> None:
    (tmp_path / 'compute_id').touch()
    driver = make_driver(**options)
    assert os.listdir(instances_path / '_base') != []
    for path in (instances_path / '_base').iterdir():
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    getattr(driver, when)()
    assert (os.listdir(instances_path / '_base') != []) == leaves


@pytest.mark.parametrize('images_type', ['lvm', 'rbd', 'ploop'])
def test_backend_without_files_leaves_no_partials(
    make_driver: MakeDriver, instances_path: pathlib.Path, images_type: str
) -> None:
    make_driver(libvirt__images_type=images_type).remove_leftovers()
    assert not instances_path.exists()


def test_driver_creation_does_not_touch_host(
    instances_path: pathlib.Path, make_driver: MakeDriver
) -> None:
    conf = precache_conf.new([], [])
    conf.set_override('instances_path', str(instances_path))
    libvirt.LibvirtDriver(conf)
    assert not instances_path.exists()


def test_downloads_read_where_chosen(instances_path: pathlib.Path, qemu_img: str) -> None:
    """The image service defines the image; its bytes come from the source that is chosen."""

    class Elsewhere:
        def choose(self, origin: source.Origin, offset_bytes: int) -> source.Source:
            return source.ImageServiceSource(elsewhere, origin.image)

    data = disk_images.content(disk_images.MIB)
    images, elsewhere = fake.FakeImageService(), fake.FakeImageService()
    image = images.add(data, disk_format='raw')
    elsewhere.add(data, id=image.id, disk_format='raw')
    conf = precache_conf.new([], [])
    conf.set_override('instances_path', str(instances_path))
    conf.set_override('reserved_disk_bytes', 0, 'image_cache')
    made = driver.load_driver('libvirt.LibvirtDriver', conf, Elsewhere())
    made.init_host()
    assert not made.cache_image(images, image.id, ignore).existing
    assert (images.opens, elsewhere.opens) == ([], [(image.id, 0)])


def two_days_old(instances_path: pathlib.Path, image_id: str) -> pathlib.Path:
    """Age the base file of an image."""
    path = instances_path / '_base' / sha1(image_id)
    then = time.time() - 2 * 86400
    os.utime(path, (then, then))
    return path


@pytest.fixture
def old_image(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> pathlib.Path:
    """An image that was cached two days ago and is unused since."""
    image = images.add(disk_images.content(disk_images.MIB))
    make_driver().cache_image(images, image.id, ignore)
    return two_days_old(instances_path, image.id)


def test_expired_image_cached_again(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    made = make_driver()
    made.cache_image(images, image.id, ignore)
    made.manage_image_cache()
    assert made.cache_image(images, image.id, ignore).existing

    path = two_days_old(instances_path, image.id)
    made.manage_image_cache()
    assert not path.exists()
    assert made.cache_report().cache_bytes == 0
    assert not made.cache_image(images, image.id, ignore).existing
    assert path.exists()


def test_used_image_stays_and_ages_afterwards(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    made = make_driver()
    disk = made.create_root_disk(images, image.id, 'instance')
    path = two_days_old(instances_path, image.id)
    made.manage_image_cache()
    os.unlink(disk.path)
    made.manage_image_cache()
    assert path.exists()
    two_days_old(instances_path, image.id)
    made.manage_image_cache()
    assert not path.exists()


def test_resized_image_has_own_expiry_age(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    made = make_driver(image_cache__remove_unused_resized_minimum_age_seconds=10**8)
    resized = instances_path / '_base' / f'{sha1("i")}_20'
    resized.write_bytes(b'data')
    os.utime(resized, (time.time() - 2 * 86400,) * 2)
    made.manage_image_cache()
    assert resized.exists()
    make_driver().manage_image_cache()
    assert not resized.exists()


def test_corrupt_disk_ends_round(
    make_driver: MakeDriver, instances_path: pathlib.Path, old_image: pathlib.Path
) -> None:
    disk = instances_path / 'instance' / 'disk'
    disk.parent.mkdir()
    disk.write_bytes(b'QFI\xfb')
    with pytest.raises(exception.StorageError, match=str(disk)):
        make_driver().manage_image_cache()
    assert old_image.exists()
    disk.unlink()
    make_driver().manage_image_cache()
    assert not old_image.exists()


@pytest.mark.parametrize('mark', ['instances/compute_nodes', 'compute_id'])
def test_nova_compute_expires_images_by_default(
    make_driver: MakeDriver, tmp_path: pathlib.Path, old_image: pathlib.Path, mark: str
) -> None:
    (tmp_path / mark).touch()
    make_driver().manage_image_cache()
    assert old_image.exists()
    make_driver(image_cache__remove_unused_base_images=True).manage_image_cache()
    assert not old_image.exists()


def test_option_in_file_is_set(
    make_driver: MakeDriver, tmp_path: pathlib.Path, old_image: pathlib.Path
) -> None:
    (tmp_path / 'compute_id').touch()
    file = tmp_path / 'nova-precache.conf'
    file.write_text(
        f'[DEFAULT]\ninstances_path = {tmp_path}/instances\n'
        '[image_cache]\nremove_unused_base_images = true\n'
    )
    libvirt.LibvirtDriver(precache_conf.new([], [str(file)])).manage_image_cache()
    assert not old_image.exists()


def test_option_has_older_nova_name(
    make_driver: MakeDriver, tmp_path: pathlib.Path, old_image: pathlib.Path
) -> None:
    file = tmp_path / 'nova.conf'
    file.write_text(
        f'[DEFAULT]\ninstances_path = {tmp_path}/instances\nremove_unused_base_images = false\n'
    )
    libvirt.LibvirtDriver(precache_conf.new([], [str(file)])).manage_image_cache()
    assert old_image.exists()
    (tmp_path / 'compute_id').touch()
    file.write_text(file.read_text().replace('false', 'true'))
    libvirt.LibvirtDriver(precache_conf.new([], [str(file)])).manage_image_cache()
    assert not old_image.exists()


def test_disabled_removal_removes_nothing(make_driver: MakeDriver, old_image: pathlib.Path) -> None:
    make_driver(image_cache__remove_unused_base_images=False).manage_image_cache()
    assert old_image.exists()


@pytest.mark.parametrize('images_type', ['lvm', 'rbd', 'ploop'])
def test_backend_without_files_manages_no_cache(
    make_driver: MakeDriver, old_image: pathlib.Path, images_type: str
) -> None:
    make_driver(libvirt__images_type=images_type).manage_image_cache()
    assert old_image.exists()


# Inventory


def test_cached_images_listed_with_details(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    sparse = images.add(b'data' + bytes(8 * disk_images.MIB))
    made = make_driver()
    made.cache_image(images, sparse.id, ignore)
    for instance in ('one', 'two'):
        made.create_root_disk(images, sparse.id, instance)
    path = instances_path / '_base' / sha1(sparse.id)
    os.utime(path, ns=(0, 1_767_323_045_678_901_234))
    (path.parent / 'swap_512').write_bytes(b'of Nova')

    [found] = made.cached_images()

    assert found == model.CachedImage(
        host='',
        name=sha1(sparse.id),
        image_id=None,
        size_bytes=8 * disk_images.MIB + 4,
        disk_bytes=path.stat().st_blocks * 512,
        touched_at=datetime.datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001
        used_by=2,
    )
    assert found.disk_bytes < disk_images.MIB


def test_disks_counted_only_on_request(
    make_driver: MakeDriver, images: fake.FakeImageService
) -> None:
    image = images.add(disk_images.content(disk_images.MIB))
    made = make_driver()
    disk = made.create_root_disk(images, image.id, 'instance')
    assert [each.used_by for each in made.cached_images(recount=False)] == [None]
    assert [each.used_by for each in made.cached_images()] == [1]
    os.unlink(disk.path)
    assert [each.used_by for each in made.cached_images(recount=False)] == [1]
    assert [each.used_by for each in made.cached_images()] == [0]


def test_unreadable_disk_makes_usage_unknown(
    make_driver: MakeDriver, instances_path: pathlib.Path, old_image: pathlib.Path
) -> None:
    (instances_path / 'instance').mkdir()
    (instances_path / 'instance' / 'disk').write_bytes(b'QFI\xfb')
    [found] = make_driver().cached_images()
    assert (found.name, found.used_by) == (old_image.name, None)


@pytest.mark.parametrize(('seconds', 'year'), [(-(2**33), 1970), (2**33, 2242), (2**60, 9999)])
def test_impossible_time_reported_as_nearest(seconds: int, year: int) -> None:
    assert driver_module._utc(seconds * 10**9).year == year


def test_expired_image_not_listed(make_driver: MakeDriver, old_image: pathlib.Path) -> None:
    made = make_driver()
    assert [each.name for each in made.cached_images()] == [old_image.name]
    made.manage_image_cache()
    assert made.cached_images() == []


def test_missing_cache_not_empty(make_driver: MakeDriver, instances_path: pathlib.Path) -> None:
    made = make_driver()
    os.rmdir(instances_path / '_base')
    with pytest.raises(exception.StorageError, match='No such file'):
        made.cached_images()


def test_unlocked_partial_is_discarded(
    make_driver: MakeDriver, instances_path: pathlib.Path, unfinished: str
) -> None:
    made, other = make_driver(), make_driver()
    with other._locks.hold(sha1(unfinished)):
        assert not made.discard_partial(unfinished)
    assert len(os.listdir(instances_path / '_base')) == 2
    assert made.discard_partial(unfinished)
    assert os.listdir(instances_path / '_base') == []


def test_backend_without_files_lists_nothing(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    without = make_driver(libvirt__images_type='rbd')
    assert without.cached_images() == ()
    assert without.discard_partial('image')
    assert not instances_path.exists()


def test_running_driver_adopts_new_limits(
    make_driver: MakeDriver, instances_path: pathlib.Path
) -> None:
    made = make_driver()
    file = instances_path / '_base' / sha1('image')
    file.write_bytes(b'image')
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago))
    made.manage_image_cache()
    assert file.exists()

    conf = precache_conf.new([], [])
    conf.set_override('remove_unused_original_minimum_age_seconds', 1800, 'image_cache')
    conf.set_override('max_rate_bytes', 1000, 'image_cache')
    conf.set_override('min_rate_bytes', 500, 'image_cache')
    conf.set_override('stall_seconds', 7, 'image_cache')
    assert made._stall_rule == stall.StallRule(32 * 1024, 60), 'the defaults'
    made.options_changed(conf)
    made.manage_image_cache()

    assert not file.exists()
    # A rate this low never allows many bytes at a time.
    assert made._pace.read_bytes(Control()) == 1024
    assert made._populator._downloader.stall_rule() == stall.StallRule(500, 7)


# Kernels and ramdisks


def bootable(images: fake.FakeImageService) -> model.Image:
    """Add an image that names a kernel."""
    kernel = images.add(b'the kernel', disk_format='aki', container_format='aki')
    data = disk_images.content(disk_images.MIB)
    return images.add(data, kernel_id=kernel.id)


def test_image_without_kernel_not_reported_cached(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image, made = bootable(images), make_driver()
    made.cache_image(images, image.id, ignore)
    kernel = instances_path / '_base' / sha1(str(image.kernel_id))
    assert {each.name for each in made.cached_images()} == {sha1(image.id), kernel.name}
    kernel.unlink()
    assert made.cached_images() == []
    assert not made.cache_image(images, image.id, ignore).existing
    assert len(made.cached_images()) == 2


def test_kernel_outlives_its_last_instance(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image, made = bootable(images), make_driver()
    made.cache_image(images, image.id, ignore)
    (instances_path / 'instance').mkdir()
    copy = instances_path / 'instance' / 'kernel'
    copy.write_bytes(b'the kernel')
    kernel = two_days_old(instances_path, str(image.kernel_id))
    base = two_days_old(instances_path, image.id)

    made.manage_image_cache()
    assert kernel.exists()
    assert not base.exists()
    [told] = made.cached_images()
    assert (told.name, told.used_by) == (kernel.name, 1)

    copy.unlink()
    two_days_old(instances_path, str(image.kernel_id))
    made.manage_image_cache()
    assert os.listdir(instances_path / '_base') in ([], [f'{base.name}.companions'])
    made.manage_image_cache()
    assert os.listdir(instances_path / '_base') == []


def test_root_disk_caches_kernel(
    make_driver: MakeDriver, images: fake.FakeImageService, instances_path: pathlib.Path
) -> None:
    image, made = bootable(images), make_driver()
    kernel = instances_path / '_base' / sha1(str(image.kernel_id))
    assert not made.create_root_disk(images, image.id, 'first').image_existing
    assert kernel.read_bytes() == b'the kernel'
    assert made.create_root_disk(images, image.id, 'second').image_existing
    kernel.unlink()
    assert not made.create_root_disk(images, image.id, 'third').image_existing
    assert kernel.exists()


def test_unwritable_cache_is_named(
    make_driver: MakeDriver, instances_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_driver()
    made.init_host()
    assert made.why_unusable() is None

    monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere

    assert made.why_unusable() == f'{instances_path}/_base is not writable'


def test_unmounted_cache_is_named(make_driver: MakeDriver, instances_path: pathlib.Path) -> None:
    made = make_driver()
    made.init_host()

    shutil.rmtree(instances_path)

    assert f'{instances_path}/_base' in str(made.why_unusable())
