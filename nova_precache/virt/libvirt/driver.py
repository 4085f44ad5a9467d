# SPDX-License-Identifier: Apache-2.0
"""Caches images as the files that Nova's libvirt driver boots instances from."""

import dataclasses
import logging
import os

from oslo_config import cfg

from nova_precache import exception, model
from nova_precache.cache import expiry, filler, layout, locks, store
from nova_precache.download import engine
from nova_precache.image import service
from nova_precache.inspection import convert, formats, qemu_img
from nova_precache.virt import driver
from nova_precache.virt.libvirt import imagebackend, usage

LOG = logging.getLogger(__name__)

_WITHOUT_FILE_CACHE = frozenset({'lvm', 'rbd', 'ploop'})


@dataclasses.dataclass(frozen=True)
class LibvirtSettings:
    """What the options say about the cache and about root disks."""

    layout: layout.CacheLayout
    images_type: str
    force_raw_images: bool
    use_cow_images: bool
    reserved_disk_bytes: int
    allow_unverified_images: bool
    expiry: expiry.ExpiryRules
    expiry_set: bool
    vmdk_allowed_types: tuple[str, ...]
    qemu_img_limits: qemu_img.QemuImgLimits

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'LibvirtSettings':
        group = conf.image_cache
        return cls(
            layout=layout.CacheLayout(
                os.path.abspath(conf.instances_path), group.subdirectory_name
            ),
            images_type=conf.libvirt.images_type,
            force_raw_images=conf.force_raw_images,
            use_cow_images=conf.use_cow_images,
            reserved_disk_bytes=group.reserved_disk_bytes,
            allow_unverified_images=group.allow_unverified_images,
            expiry=expiry.ExpiryRules(
                original_age_seconds=group.remove_unused_original_minimum_age_seconds,
                resized_age_seconds=group.remove_unused_resized_minimum_age_seconds,
                remove=group.remove_unused_base_images,
            ),
            expiry_set=_is_set(conf, 'remove_unused_base_images', 'image_cache'),
            vmdk_allowed_types=tuple(group.vmdk_allowed_types),
            qemu_img_limits=qemu_img.QemuImgLimits.from_conf(conf),
        )

    @property
    def overlay(self) -> bool:
        """Whether root disks are qcow2 overlays; else they are raw copies."""
        if self.images_type == 'default':
            return self.use_cow_images
        return self.images_type == 'qcow2'


class LibvirtDriver(driver.ComputeDriver):
    """The driver; it moves no instance, it only has their images ready."""

    capabilities = {'supports_cache_image': True}  # noqa: RUF012

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__(conf)
        settings = LibvirtSettings.from_conf(conf)
        self._settings = settings
        self._qemu = qemu_img.QemuImg(settings.qemu_img_limits)
        self._locks = locks.ImageLocks(settings.layout.lock_directory)
        self._store = store.CacheStore(
            settings.layout,
            force_raw=settings.force_raw_images,
            reserved_bytes=settings.reserved_disk_bytes,
        )
        disk_usage = usage.DiskUsage(settings.layout)
        inspector = formats.ImageInspector(self._qemu, settings.vmdk_allowed_types)
        self._filler = filler.CacheFiller(
            store=self._store,
            image_locks=self._locks,
            downloader=engine.Downloader(allow_unverified=settings.allow_unverified_images),
            inspector=inspector,
            converter=convert.Converter(self._qemu, inspector),
            force_raw=settings.force_raw_images,
            is_backing=disk_usage.is_backing,
        )
        self._expirer = expiry.CacheExpirer(
            store=self._store,
            image_locks=self._locks,
            rules=settings.expiry,
            used_names=disk_usage.backing_names,
        )
        self._root_disks = self._root_disk_maker(inspector)

    def _root_disk_maker(self, inspector: formats.ImageInspector) -> imagebackend.RootDiskMaker:
        return imagebackend.RootDiskMaker(
            store=self._store,
            image_locks=self._locks,
            cache_filler=self._filler,
            inspector=inspector,
            qemu=self._qemu,
            overlay=self._settings.overlay,
        )

    def init_host(self) -> None:
        if not self._has_file_cache():
            return
        self._qemu.check_installed()
        try:
            self._store.prepare()
            self._store.store_id()
            self._store.sweep(self._locks)
        except (exception.NotEnoughSpace, exception.StorageError) as exc:
            raise exception.ConfigError(f'instances_path cannot be used: {exc}') from exc

    def cache_image(
        self, images: service.ImageService, image_id: str, progress: model.ProgressCallback
    ) -> model.CacheResult:
        self._check_backend()
        return self._filler.fill(images, image_id, progress)

    def create_root_disk(
        self,
        images: service.ImageService,
        image_id: str,
        instance: str,
        size_bytes: int | None = None,
        progress: model.ProgressCallback = lambda progress: None,
    ) -> driver.RootDisk:
        self._check_backend()
        return self._root_disks.create(images, image_id, instance, size_bytes, progress)

    def manage_image_cache(self) -> None:
        if not self._has_file_cache():
            return
        if not self._settings.expiry_set and _is_novas(self._settings.layout):
            LOG.debug('Unused base files are left to nova-compute, whose cache this is too')
            return
        self._expirer.run()

    def cache_report(self) -> driver.CacheReport:
        if not self._has_file_cache():
            return driver.CacheReport()
        try:
            return driver.CacheReport(
                store_id=self._store.store_id(),
                cache_bytes=self._store.cache_bytes(),
                free_bytes=self._store.free_bytes(),
            )
        except exception.CacheError as exc:  # a full disk takes no new store id
            LOG.warning('The cache cannot be reported: %s', exc)
            return driver.CacheReport()

    def _has_file_cache(self) -> bool:
        return self._settings.images_type not in _WITHOUT_FILE_CACHE

    def _check_backend(self) -> None:
        if not self._has_file_cache():
            raise exception.BackendUnsupported(
                f'[libvirt] images_type {self._settings.images_type} keeps no image cache in files'
            )


def _is_novas(paths: layout.CacheLayout) -> bool:
    return any(map(os.path.exists, paths.nova_marks))


def _is_set(conf: cfg.ConfigOpts, name: str, group: str) -> bool:
    """Tell whether somebody chose the value of an option, if only that of its default."""
    found = conf.get_location(name, group)
    return found is not None and found.location is not cfg.Locations.opt_default
