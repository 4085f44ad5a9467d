# SPDX-License-Identifier: Apache-2.0
"""Caches images as the files that Nova's libvirt driver boots instances from."""

import dataclasses
import logging
import os

from oslo_config import cfg

from nova_precache import exception, model
from nova_precache.cache import filler, layout, locks, store
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
    vmdk_allowed_types: tuple[str, ...]
    qemu_img_limits: qemu_img.QemuImgLimits

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'LibvirtSettings':
        return cls(
            layout=layout.CacheLayout(
                os.path.abspath(conf.instances_path), conf.image_cache.subdirectory_name
            ),
            images_type=conf.libvirt.images_type,
            force_raw_images=conf.force_raw_images,
            use_cow_images=conf.use_cow_images,
            reserved_disk_bytes=conf.image_cache.reserved_disk_bytes,
            allow_unverified_images=conf.image_cache.allow_unverified_images,
            vmdk_allowed_types=tuple(conf.image_cache.vmdk_allowed_types),
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
        self._images_type = settings.images_type
        self._qemu = qemu_img.QemuImg(settings.qemu_img_limits)
        self._locks = locks.ImageLocks(settings.layout.lock_directory)
        self._store = store.CacheStore(
            settings.layout,
            force_raw=settings.force_raw_images,
            reserved_bytes=settings.reserved_disk_bytes,
        )
        inspector = formats.ImageInspector(self._qemu, settings.vmdk_allowed_types)
        self._filler = filler.CacheFiller(
            store=self._store,
            image_locks=self._locks,
            downloader=engine.Downloader(allow_unverified=settings.allow_unverified_images),
            inspector=inspector,
            converter=convert.Converter(self._qemu, inspector),
            force_raw=settings.force_raw_images,
            is_backing=usage.DiskUsage(settings.layout.instances_path).is_backing,
        )
        self._root_disks = imagebackend.RootDiskMaker(
            store=self._store,
            cache_filler=self._filler,
            inspector=inspector,
            qemu=self._qemu,
            overlay=settings.overlay,
        )

    def init_host(self) -> None:
        if self._images_type in _WITHOUT_FILE_CACHE:
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

    def cache_report(self) -> driver.CacheReport:
        if self._images_type in _WITHOUT_FILE_CACHE:
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

    def _check_backend(self) -> None:
        if self._images_type in _WITHOUT_FILE_CACHE:
            raise exception.BackendUnsupported(
                f'[libvirt] images_type {self._images_type} keeps no image cache in files'
            )
