# SPDX-License-Identifier: Apache-2.0
"""How an image gets into the cache: the one routine for precaching and for boots.

::

    there already?  ── yes ──► make it young: existing
        │ no
    lock ── there now? ── yes ──► make it young: existing
        │ no
    wait for a slot ─► look the image up, and at its place ─► find what came before
        ─► reserve space ─────────────────────────────────────────────────┐
                                                                          │
    publish ◄─ look it up again ◄─ convert ◄─ inspect the whole ◄─ download, verify and watch

Whatever fails on the way, nothing is left in the directory but what another attempt can
go on from.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator

from nova_precache import control as controls
from nova_precache import exception, model
from nova_precache.cache import layout, locks, partials
from nova_precache.cache import store as cache_store
from nova_precache.download import engine, source
from nova_precache.download import pace as paces
from nova_precache.image import service
from nova_precache.inspection import convert, formats

LOG = logging.getLogger(__name__)

# What is to be converted is read again as soon as it is here. While its pages are still in
# the page cache, qemu-img need not wait for the disk. They stay for that up to this share of
# the memory, and are gone once the image is published: the page cache is for what the guests
# read.
_KEPT_PAGES_SHARE = 1 / 8


@dataclasses.dataclass(frozen=True)
class _Work:
    """An image that is on its way."""

    origin: source.Source
    partial: partials.Partial
    space: cache_store.Reservation
    progress: model.ProgressCallback
    control: controls.Control

    @property
    def image(self) -> model.Image:
        return self.origin.image


class CacheFiller:
    """Fills one cache.

    :param force_raw: convert images of other formats to raw
    :param is_backing: tells whether some disk is based on the file with this path
    :param max_virtual_size_bytes: the largest disk that an image may hold; 0: any
    :param sync_rules: None: the usual ones
    """

    def __init__(
        self,
        *,
        store: cache_store.CacheStore,
        image_locks: locks.ImageLocks,
        downloader: engine.Downloader,
        inspector: formats.ImageInspector,
        converter: convert.Converter,
        pace: paces.HostPace,
        force_raw: bool,
        is_backing: Callable[[str], bool],
        max_virtual_size_bytes: int = 0,
        sync_rules: partials.SyncRules | None = None,
    ) -> None:
        self._store = store
        self._partials = partials.Partials(store.layout, sync_rules)
        self._locks = image_locks
        self._downloader = downloader
        self._inspector = inspector
        self._converter = converter
        self._pace = pace
        self._force_raw = force_raw
        self._is_backing = is_backing
        self._max_virtual_size_bytes = max_virtual_size_bytes

    def fill(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: controls.Control | None = None,
    ) -> model.CacheResult:
        """Have the base file of an image in the cache, and young.

        Waits while another thread or process, Nova's too, fills in the same image.

        :raises nova_precache.exception.CacheError: with the reason why it is not there
        """
        control = control or controls.Control()
        control.check()
        if self._is_there(image_id, control):
            return model.CacheResult(existing=True)
        with contextlib.ExitStack() as stack:
            if control.is_boot:
                stack.enter_context(self._pace.boot())
            stack.enter_context(self._locks.hold(layout.base_name(image_id), control))
            stack.enter_context(self._clearing(image_id, control))
            if self._is_there(image_id, control):
                return model.CacheResult(existing=True)
            stack.enter_context(self._locks.hastening(layout.base_name(image_id), control))
            stack.enter_context(self._pace.slot(control))
            return self._fill(images, image_id, progress, control)

    def _is_there(self, image_id: str, control: controls.Control) -> bool:
        self._store.check_there()
        is_hit = self._store.is_hit(image_id)
        return is_hit and self._store.touch(image_id, is_boot=control.is_boot)

    @contextlib.contextmanager
    def _clearing(self, image_id: str, control: controls.Control) -> Iterator[None]:
        """Clear away in the end what no other attempt will go on from."""
        keeps = False
        try:
            yield
        except exception.CacheError as exc:
            keeps = exc.keeps_partial and not control.is_last_attempt
            raise
        finally:
            if not keeps:
                self._partials.clear(image_id)

    def _fill(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: controls.Control,
    ) -> model.CacheResult:
        origin = control.leave_when_stopped(
            lambda: source.ImageServiceSource.find(images, image_id), discard=lambda _: None
        )
        image = origin.image
        self._inspector.check_there()
        self._store.check_place(image_id)
        self._check_replaceable(image_id)
        if image.disk_format in formats.RAW_DISK_FORMATS:
            self._check_virtual_size(image.size or 0)
        with (
            self._partials.open(image, keep_pages=self._keeps_pages(image)) as partial,
            self._store.reserve(
                self._needed_bytes(image, partial, image.virtual_size),
                [partial.converted_path],
                lambda: partial.passed_bytes,
            ) as space,
        ):
            work = _Work(origin, partial, space, progress, control)
            partial.check_size(image.size or 0)
            if self._will_convert(image):
                partial.check_converted(image.virtual_size or 0)
            size_bytes = self._download(work)
            with _keeping(work):
                path = self._make_bootable(work, size_bytes)
                control.leave_when_stopped(origin.check_unchanged, discard=lambda _: None)
                control.check()
            self._store.publish(path, image_id)
        LOG.info('Image %s is cached, %d bytes', image_id, size_bytes)
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

    def _check_virtual_size(self, virtual_size_bytes: int) -> None:
        if 0 < self._max_virtual_size_bytes < virtual_size_bytes:
            raise exception.UnsafeImage(
                f'its disk of {virtual_size_bytes} bytes is more than '
                f'max_virtual_size_bytes, {self._max_virtual_size_bytes}'
            )

    def _keeps_pages(self, image: model.Image) -> bool:
        return self._will_convert(image) and (image.size or 0) <= _max_kept_pages_bytes()

    def _needed_bytes(
        self, image: model.Image, partial: partials.Partial, virtual_size_bytes: int | None
    ) -> int:
        """Add up what downloading takes, and converting where that will be done."""
        download_bytes = max(image.size or 0, partial.passed_bytes)
        return download_bytes + (virtual_size_bytes or 0 if self._will_convert(image) else 0)

    def _will_convert(self, image: model.Image) -> bool:
        return self._force_raw and image.disk_format not in formats.RAW_DISK_FORMATS

    def _download(self, work: _Work) -> int:
        watcher = self._inspector.watch(
            work.image.disk_format, functools.partial(self._admit, work)
        )
        return self._downloader.download(
            work.origin, work.partial, watcher, work.control, work.progress
        )

    def _admit(self, work: _Work, virtual_size_bytes: int) -> None:
        """See that the disk in an image, as its bytes have it, may be so large, and fits.

        The size that the image service told before does not matter any more.
        """
        self._check_virtual_size(virtual_size_bytes)
        work.space.require(self._needed_bytes(work.image, work.partial, virtual_size_bytes))
        if self._will_convert(work.image):
            work.partial.check_converted(virtual_size_bytes)

    def _make_bootable(self, work: _Work, size_bytes: int) -> str:
        """Inspect what came, convert it where it is not what is to be booted, and tell where."""
        partial, control = work.partial, work.control
        inspected = self._inspector.inspect(partial.path, work.image.disk_format, control)
        self._admit(work, inspected.virtual_size_bytes)
        if not self._force_raw or inspected.qemu_format == 'raw':
            return partial.path
        work.progress(model.Progress(model.TaskStatus.CONVERTING, size_bytes, work.image.size))
        self._converter.to_raw(partial.path, inspected, partial.converted_path, control)
        return partial.converted_path


@contextlib.contextmanager
def _keeping(work: _Work) -> Iterator[None]:
    """Keep what came for another attempt, where there may be one, as a download does."""
    try:
        yield
    except exception.CacheError as exc:
        if exc.keeps_partial and not work.control.is_last_attempt:
            _keep(work)
        raise


def _keep(work: _Work) -> None:
    try:
        work.partial.keep()
    except exception.CacheError as exc:
        LOG.warning('What came of image %s is not kept: %s', work.image.id, exc)


def _max_kept_pages_bytes() -> float:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') * _KEPT_PAGES_SHARE
