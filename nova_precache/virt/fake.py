# SPDX-License-Identifier: Apache-2.0
"""Drivers without a hypervisor: one that cannot cache, one that caches in memory."""

import dataclasses
import datetime
import threading
from collections.abc import Collection, Sequence

from oslo_config import cfg

from nova_precache import model
from nova_precache.cache import layout
from nova_precache.download import source
from nova_precache.image import service
from nova_precache.transfer_control import Control
from nova_precache.virt import driver


class FakeDriver(driver.ComputeDriver):
    """A hypervisor without an image cache."""


class FakeDriverWithCaching(FakeDriver):
    """Caches the names of images; no byte is moved."""

    capabilities = {'supports_cache_image': True}  # noqa: RUF012

    def __init__(self, conf: cfg.ConfigOpts, chooser: source.SourceChooser | None = None) -> None:
        super().__init__(conf, chooser)
        self.cached: dict[str, model.CachedImage] = {}
        self._lock = threading.Lock()

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        if control is not None:
            control.check()
        wanted = [image_id, *(each.id for each in needed or ())]
        with self._lock:
            if self.cached.keys() >= set(wanted):
                for each in wanted:
                    self.cached[each] = dataclasses.replace(self.cached[each], touched_at=_now())
                return model.CacheResult(existing=True)
        image = source.ImageServiceSource.find(images, image_id).image
        size_bytes = image.total_bytes or 0
        progress(model.Progress(model.TaskStatus.DOWNLOADING, size_bytes, size_bytes))
        with self._lock:
            self.cached.update((each.id, _cached_image(each)) for each in image.parts)
        return model.CacheResult(existing=False, bytes_done=size_bytes, bytes_total=size_bytes)

    def remove_image(self, image_id: str, kept_ids: Collection[str] = ()) -> model.ImageRemoval:
        with self._lock:
            image = self.cached.get(image_id)
            if image is None:
                return model.ImageRemoval(model.RemovalStatus.ABSENT)
            if image.used_by:
                return model.ImageRemoval(model.RemovalStatus.USED, 'an instance uses it')
            del self.cached[image_id]
        return model.ImageRemoval(
            model.RemovalStatus.REMOVED, freed_bytes=image.disk_bytes, names=(image.name,)
        )

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        with self._lock:
            return sorted(self.cached.values(), key=lambda each: each.name)


def _cached_image(image: model.Image) -> model.CachedImage:
    return model.CachedImage(
        host='',
        name=layout.base_name(image.id),
        image_id=None,
        size_bytes=image.size or 0,
        disk_bytes=0,
        touched_at=_now(),
        used_by=0,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
