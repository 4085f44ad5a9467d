# SPDX-License-Identifier: Apache-2.0
"""Drivers without a hypervisor: one that cannot cache, one that does in memory."""

import threading

from oslo_config import cfg

from nova_precache import model
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
        self.cached_images: set[str] = set()
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
            if image_id in self.cached_images:
                return model.CacheResult(existing=True)
        size_bytes = source.ImageServiceSource.find(images, image_id).image.size or 0
        progress(model.Progress(model.TaskStatus.DOWNLOADING, size_bytes, size_bytes))
        with self._lock:
            self.cached_images.add(image_id)
        return model.CacheResult(existing=False, bytes_done=size_bytes, bytes_total=size_bytes)
