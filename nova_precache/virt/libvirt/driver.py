# SPDX-License-Identifier: Apache-2.0
"""Cache images as the files from which Nova's libvirt driver boots instances."""

import dataclasses
import datetime
import logging
import os
from collections.abc import Collection, Mapping, Sequence

from oslo_config import cfg

from nova_precache import capabilities, exception, model
from nova_precache.cache import boot_signal, expiry, layout, locks, populator, space, store, sweeper
from nova_precache.download import engine, rate_limit, source, stall
from nova_precache.image import service
from nova_precache.inspection import convert, formats, qemu_img
from nova_precache.transfer_control import Control
from nova_precache.virt import driver
from nova_precache.virt.libvirt import imagebackend, usage

LOG = logging.getLogger(__name__)

_WITHOUT_FILE_CACHE = frozenset({'lvm', 'rbd', 'ploop'})
# Between the touch of a base file and the creation of its disk, nova-compute holds no lock.
NOVA_BOOT_SECONDS = 30.0
_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - in UTC, as times are kept
_LATEST = datetime.datetime(9999, 12, 31)  # noqa: DTZ001
_LAST_MICROSECOND = (_LATEST - _EPOCH) // datetime.timedelta(microseconds=1)


@dataclasses.dataclass(frozen=True)
class LibvirtSettings:
    """The options of the cache and of root disks."""

    layout: layout.CacheLayout
    images_type: str
    force_raw_images: bool
    use_cow_images: bool
    reserved_disk_bytes: int
    max_virtual_size_bytes: int
    partial_max_age_seconds: int
    allow_unverified_images: bool
    max_rate_bytes: int
    max_parallel_downloads: int
    yield_share: float
    stall_rule: stall.StallRule
    idle_priority: bool
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
            max_virtual_size_bytes=group.max_virtual_size_bytes,
            partial_max_age_seconds=group.partial_max_age_seconds,
            allow_unverified_images=group.allow_unverified_images,
            max_rate_bytes=group.max_rate_bytes,
            max_parallel_downloads=group.max_parallel_downloads,
            yield_share=group.yield_share_percent / 100,
            stall_rule=_stall_rule(conf),
            idle_priority=group.idle_priority,
            expiry=_expiry_rules(conf),
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
    """The libvirt driver; it manages only images, not instances."""

    def __init__(self, conf: cfg.ConfigOpts, chooser: source.SourceChooser | None = None) -> None:
        super().__init__(conf, chooser)
        settings = LibvirtSettings.from_conf(conf)
        self._settings = settings
        self.capabilities = {
            'supports_cache_image': self._has_file_cache(),
            'force_raw_images': settings.force_raw_images,
            'reserved_disk_bytes': settings.reserved_disk_bytes,
        }
        self._qemu = qemu_img.QemuImg(settings.qemu_img_limits)
        self._store = store.CacheStore(
            settings.layout,
            force_raw=settings.force_raw_images,
        )
        self._space = space.CacheSpace(settings.layout, settings.reserved_disk_bytes)
        self._locks = locks.ImageLocks(settings.layout.lock_directory, self._store.check_mounted)
        self._sweeper = sweeper.Sweeper(self._store, self._locks, settings.partial_max_age_seconds)
        self._usage = disk_usage = usage.DiskUsage(settings.layout)
        self._used_by: Mapping[str, int] | None = None
        self._lag_seconds = 0.0
        self._problem: str | None = None
        self._pace = rate_limit.HostRateLimit(
            max_rate_bytes=settings.max_rate_bytes,
            max_parallel=settings.max_parallel_downloads,
            yield_share=settings.yield_share,
            elsewhere=boot_signal.WaitingBoots(settings.layout.lock_directory),
        )
        self._stall_rule = settings.stall_rule
        self._populator = self._cache_populator(disk_usage, chooser or source.OriginOnly())
        self._expirer = expiry.CacheExpirer(
            store=self._store,
            image_locks=self._locks,
            rules=settings.expiry,
            used_names=disk_usage.backing_names,
        )
        self._root_disks = imagebackend.RootDiskMaker(
            store=self._store,
            space=self._space,
            image_locks=self._locks,
            cache_populator=self._populator,
            inspector=formats.ImageInspector(self._qemu, settings.vmdk_allowed_types),
            qemu=self._qemu,
            overlay=settings.overlay,
        )

    def _cache_populator(
        self, disk_usage: usage.DiskUsage, chooser: source.SourceChooser
    ) -> populator.CachePopulator:
        settings = self._settings
        qemu = qemu_img.QemuImg(settings.qemu_img_limits, idle_priority=settings.idle_priority)
        inspector = formats.ImageInspector(qemu, settings.vmdk_allowed_types)
        return populator.CachePopulator(
            store=self._store,
            space=self._space,
            image_locks=self._locks,
            downloader=engine.Downloader(
                allow_unverified=settings.allow_unverified_images,
                chooser=chooser,
                pace=self._pace,
                idle_priority=settings.idle_priority,
                stall_rule=lambda: self._stall_rule,
            ),
            inspector=inspector,
            converter=convert.Converter(qemu, inspector),
            force_raw=settings.force_raw_images,
            is_backing=disk_usage.is_backing,
            pace=self._pace,
            max_virtual_size_bytes=settings.max_virtual_size_bytes,
        )

    def options_changed(self, conf: cfg.ConfigOpts) -> None:
        group = conf.image_cache
        self._pace.change(
            max_rate_bytes=group.max_rate_bytes,
            max_parallel=group.max_parallel_downloads,
            yield_share=group.yield_share_percent / 100,
        )
        self._stall_rule = _stall_rule(conf)
        self._expirer.rules = _expiry_rules(conf)

    def init_host(self) -> None:
        if not self._has_file_cache():
            return
        self._qemu.check_installed()
        try:
            self._store.prepare()
            self._store.store_id()
            self._sweeper.sweep()
        except (exception.NotEnoughSpace, exception.StorageError) as exc:
            raise exception.ConfigError(f'instances_path cannot be used: {exc}') from exc
        if not capabilities.has_fowner():
            LOG.warning(
                'This process lacks CAP_FOWNER: it cannot touch base files that libvirt has given '
                'to the user of QEMU, so they may expire early. Set in the systemd unit: '
                'CapabilityBoundingSet=CAP_FOWNER and AmbientCapabilities=CAP_FOWNER'
            )

    def why_unusable(self) -> str | None:
        if not self._has_file_cache():
            return None
        try:
            self._store.check_mounted()
        except exception.StorageError as exc:
            return str(exc)
        for directory in (
            self._settings.layout.base_directory,
            self._settings.layout.lock_directory,
        ):
            if not os.access(directory, os.W_OK | os.X_OK):
                why = 'not writable' if os.path.isdir(directory) else 'not a directory'
                return f'{directory} is {why}'
        return None

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        self._check_backend()
        return self._populator.fill(images, image_id, progress, control, needed)

    def create_root_disk(
        self,
        images: service.ImageService,
        image_id: str,
        instance: str,
        size_bytes: int | None = None,
        progress: model.ProgressCallback = lambda progress: None,
        control: Control | None = None,
    ) -> driver.RootDisk:
        self._check_backend()
        boot = control or Control(is_boot=True)
        return self._root_disks.create(images, image_id, instance, size_bytes, progress, boot)

    def manage_image_cache(self) -> None:
        if not self._has_file_cache():
            return
        self._sweeper.sweep()
        if self._is_novas() and not self._settings.expiry_set:
            LOG.debug('nova-compute uses this cache, too, and removes the unused base files')
            return
        self._expirer.run()

    def remove_leftovers(self) -> None:
        if self._has_file_cache():
            self._sweeper.sweep()

    def discard_partial(self, image_id: str) -> bool:
        return not self._has_file_cache() or self._sweeper.discard_partial(image_id)

    def remove_image(self, image_id: str, kept_ids: Collection[str] = ()) -> model.ImageRemoval:
        self._check_backend()
        min_age_seconds = NOVA_BOOT_SECONDS if self._is_novas() else 0
        removal = self._expirer.remove(image_id, kept_ids, min_age_seconds)
        partial_bytes = self._sweeper.partial_bytes(image_id)
        if removal.status == model.RemovalStatus.USED or not partial_bytes:
            return removal
        is_discarded = self._sweeper.discard_partial(image_id)
        # A transfer that ran until now may have published the image: nothing was discarded.
        if is_discarded and not self._store.is_hit_file(layout.base_name(image_id)):
            return dataclasses.replace(
                removal,
                status=model.RemovalStatus.REMOVED,
                freed_bytes=removal.freed_bytes + partial_bytes,
            )
        if removal.status == model.RemovalStatus.REMOVED:
            return removal  # the transfer began after that
        why = 'a transfer uses its partial download'
        return dataclasses.replace(removal, status=model.RemovalStatus.USED, reason=why)

    def _is_novas(self) -> bool:
        """Return whether a nova-compute uses this cache, too."""
        return any(map(os.path.exists, self._settings.layout.nova_marks))

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        if not self._has_file_cache():
            return ()
        self._store.touch_changed()
        found = self._store.images()
        if recount:
            self._used_by = self._count_disks()
            self._lag_seconds = self._measure_lag()
        used_by = self._used_by
        return [
            _cached_image(
                file, self._lag_seconds, None if used_by is None else used_by.get(file.name, 0)
            )
            for file in found
        ]

    def _count_disks(self) -> Mapping[str, int] | None:
        try:
            return self._usage.counts()
        except exception.StorageError as exc:
            LOG.debug('Cannot count the disks based on each image: %s', exc)
            return None

    def _measure_lag(self) -> float:
        try:
            return self._store.measure_lag()
        except exception.CacheError as exc:
            LOG.debug('Cannot read the clock of the cache: %s', exc)
            return self._lag_seconds

    def cache_report(self) -> driver.CacheReport:
        if not self._has_file_cache():
            return driver.CacheReport()
        try:
            report = driver.CacheReport(
                store_id=self._store.store_id(),
                cache_bytes=self._space.cache_bytes(),
                free_bytes=self._space.free_bytes(),
                reserved_bytes=self._settings.reserved_disk_bytes,
            )
            self._problem = None
        except exception.CacheError as exc:
            self._repair(exc)
            return driver.CacheReport()
        return report

    def _repair(self, problem: exception.CacheError) -> None:
        """Create removed directories again for the next report; log a lasting problem once."""
        try:
            self._store.check_mounted()
        except exception.CacheError as exc:
            problem = exc
        if str(problem) != self._problem:
            LOG.warning('Cannot read the size and free space of the cache: %s', problem)
        self._problem = str(problem)

    def _has_file_cache(self) -> bool:
        return self._settings.images_type not in _WITHOUT_FILE_CACHE

    def _check_backend(self) -> None:
        if not self._has_file_cache():
            raise exception.BackendUnsupported(
                f'[libvirt] images_type {self._settings.images_type} does not cache images in files'
            )


def _stall_rule(conf: cfg.ConfigOpts) -> stall.StallRule:
    return stall.StallRule(conf.image_cache.min_rate_bytes, conf.image_cache.stall_seconds)


def _expiry_rules(conf: cfg.ConfigOpts) -> expiry.ExpiryRules:
    group = conf.image_cache
    return expiry.ExpiryRules(
        original_age_seconds=group.remove_unused_original_minimum_age_seconds,
        resized_age_seconds=group.remove_unused_resized_minimum_age_seconds,
        remove=group.remove_unused_base_images,
    )


def _cached_image(
    file: store.BaseFile, lag_seconds: float, used_by: int | None
) -> model.CachedImage:
    return model.CachedImage(
        host='',
        name=file.name,
        image_id=None,
        size_bytes=file.size_bytes,
        disk_bytes=file.bytes_on_disk,
        touched_at=_utc(file.mtime_ns + int(lag_seconds * 1e9)),
        used_by=used_by,
    )


def _utc(mtime_ns: int) -> datetime.datetime:
    """Return a file's time in UTC, limited to the range from the epoch to the year 9999."""
    microseconds = max(0, min(mtime_ns // 1000, _LAST_MICROSECOND))
    return _EPOCH + datetime.timedelta(microseconds=microseconds)


def _is_set(conf: cfg.ConfigOpts, name: str, group: str) -> bool:
    """Return whether an option was set explicitly, even to its default value."""
    found = conf.get_location(name, group)
    return found is not None and found.location is not cfg.Locations.opt_default
