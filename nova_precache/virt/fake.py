# SPDX-License-Identifier: Apache-2.0
"""Drivers without a hypervisor: one that cannot cache, one that does in memory."""

import dataclasses
import datetime
import threading
from collections.abc import Sequence

from oslo_config import cfg

from nova_precache import model
from nova_precache.cache import layout
from nova_precache.control import Control
from nova_precache.download import source
from nova_precache.image import service
from nova_precache.virt import driver


class FakeDriver(driver.ComputeDriver):
    """A hypervisor that keeps no images."""


class FakeDriverWithCaching(FakeDriver):
    """Caches the names of images; no byte is moved."""

    capabilities = {'supports_cache_image': True}  # noqa: RUF012

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__(conf)
        self.cached: dict[str, model.CachedImage] = {}
        self._lock = threading.Lock()

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
    ) -> model.CacheResult:
        if control is not None:
            control.check()
        with self._lock:
            known = self.cached.get(image_id)
            if known is not None:
                self.cached[image_id] = dataclasses.replace(known, touched_at=_now())
                return model.CacheResult(existing=True)
        size_bytes = source.ImageServiceSource.find(images, image_id).image.size or 0
        progress(model.Progress(model.TaskStatus.DOWNLOADING, size_bytes, size_bytes))
        with self._lock:
            self.cached[image_id] = _cached_image(image_id, size_bytes)
        return model.CacheResult(existing=False, bytes_done=size_bytes, bytes_total=size_bytes)

    def cached_images(self, *, recount: bool = True) -> Sequence[model.CachedImage]:
        with self._lock:
            return sorted(self.cached.values(), key=lambda each: each.name)


def _cached_image(image_id: str, size_bytes: int) -> model.CachedImage:
    return model.CachedImage(
        host='',
        name=layout.base_name(image_id),
        image_id=None,
        size_bytes=size_bytes,
        disk_bytes=0,
        touched_at=_now(),
        used_by=0,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
