# SPDX-License-Identifier: Apache-2.0
"""How an image gets into the cache: the one routine for precaching and for boots.

::

    there already?  ── yes ──► make it young: existing
        │ no
    lock ── there now? ── yes ──► make it young: existing
        │ no
    look the image up ─► reserve space ─► download and verify ─► inspect ─► convert ─► publish

Whatever fails on the way, nothing is left in the directory.
"""

import logging
import os
from collections.abc import Callable

from nova_precache import exception, model
from nova_precache.cache import layout, locks
from nova_precache.cache import store as cache_store
from nova_precache.download import engine, source
from nova_precache.image import service
from nova_precache.inspection import convert, formats

LOG = logging.getLogger(__name__)


class CacheFiller:
    """Fills one cache.

    :param force_raw: convert images of other formats to raw
    :param is_backing: tells whether some disk is based on the file with this path
    """

    def __init__(
        self,
        *,
        store: cache_store.CacheStore,
        image_locks: locks.ImageLocks,
        downloader: engine.Downloader,
        inspector: formats.ImageInspector,
        converter: convert.Converter,
        force_raw: bool,
        is_backing: Callable[[str], bool],
    ) -> None:
        self._store = store
        self._locks = image_locks
        self._downloader = downloader
        self._inspector = inspector
        self._converter = converter
        self._force_raw = force_raw
        self._is_backing = is_backing

    def fill(
        self, images: service.ImageService, image_id: str, progress: model.ProgressCallback
    ) -> model.CacheResult:
        """Have the base file of an image in the cache, and young.

        Waits while another thread or process, Nova's too, fills in the same image.

        :raises nova_precache.exception.CacheError: with the reason why it is not there
        """
        self._store.check_there()
        if self._is_there(image_id):
            return model.CacheResult(existing=True)
        with self._locks.hold(layout.base_name(image_id)):
            if self._is_there(image_id):
                return model.CacheResult(existing=True)
            return self._fill(source.ImageServiceSource.find(images, image_id), progress)

    def _is_there(self, image_id: str) -> bool:
        return self._store.is_hit(image_id) and self._store.touch(image_id)

    def _fill(self, origin: source.Source, progress: model.ProgressCallback) -> model.CacheResult:
        image = origin.image
        self._check_replaceable(image.id)
        with (
            self._store.partial(image.id, 'part') as downloaded,
            self._store.partial(image.id, 'converted') as converted,
            self._store.reserve(
                self._needed_bytes(image, image.virtual_size), (downloaded, converted)
            ) as space,
        ):
            size_bytes = self._download(origin, downloaded, progress)
            inspected = self._inspector.inspect(downloaded, image.disk_format)
            if self._is_to_convert(inspected):
                space.require(self._needed_bytes(image, inspected.virtual_size_bytes))
                progress(model.Progress(model.TaskStatus.CONVERTING, size_bytes, image.size))
                self._converter.to_raw(downloaded, inspected, converted)
                self._store.publish(converted, image.id)
            else:
                self._store.publish(downloaded, image.id)
        LOG.info('Image %s is cached, %d bytes were downloaded', image.id, size_bytes)
        return model.CacheResult(existing=False, bytes_done=size_bytes, bytes_total=size_bytes)

    def _check_replaceable(self, image_id: str) -> None:
        """See that no disk needs what stands in the place of the base file.

        A qcow2 file there, from a time before ``force_raw_images``, may have
        overlays that name its format: over a raw file they would not start again.
        """
        path = self._store.layout.base_path(image_id)
        if os.path.exists(path) and self._is_backing(path):
            raise exception.StorageError(
                f'{path} is not raw but is the backing file of a disk, so it cannot be replaced'
            )

    def _needed_bytes(self, image: model.Image, virtual_size_bytes: int | None) -> int:
        """Add up what downloading takes, and converting where that will be done."""
        download_bytes = image.size or 0
        if not self._force_raw or image.disk_format in formats.RAW_DISK_FORMATS:
            return download_bytes
        return download_bytes + (virtual_size_bytes or 0)

    def _download(self, origin: source.Source, path: str, progress: model.ProgressCallback) -> int:
        with cache_store.storage_errors(f'Creating {path}'):
            file = open(path, 'xb', buffering=0)  # noqa: SIM115
        with file:
            return self._downloader.download(origin, file, progress)

    def _is_to_convert(self, inspected: formats.InspectedImage) -> bool:
        return self._force_raw and inspected.qemu_format != 'raw'
