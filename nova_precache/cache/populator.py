# SPDX-License-Identifier: Apache-2.0
"""Bring an image into the cache: the one routine for precaching and for boots.

::

    cached already?  ── yes ──► touch it: existing
        │ no
    lock ── cached now? ── yes ──► touch it: existing
        │ no
    wait for a slot ─► look the image up, check its place ─► find a partial file to resume
        ─► reserve space ─────────────────────────────────────────────────┐
                                                                          │
    publish ◄─ look it up again ◄─ convert ◄─ inspect the whole ◄─ download, verify and watch

If a step fails, the directory keeps only what another attempt can resume.

An image that names a kernel or a ramdisk counts as cached only with them. These companions
are fetched before it, each under its own lock, and stored unchanged: Nova neither inspects
nor converts them. Space is reserved for all parts together. While another thread or process
holds the lock of a companion, the wait for it releases the lock of the image, since two
images may name each other.
"""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence

from nova_precache import exception, model, shown, transfer_control as controls
from nova_precache.cache import layout, locks, partials, space as spaces, store as cache_store
from nova_precache.download import engine, rate_limit as paces, source, target
from nova_precache.image import service
from nova_precache.inspection import convert, formats

LOG = logging.getLogger(__name__)

# An image to convert is read again right after its download. While its pages are in the page
# cache, qemu-img need not wait for the disk. Images up to this share of the memory stay there
# until they are published; then the page cache is freed for the guests.
_KEPT_PAGES_SHARE = 1 / 8
# How often companions are touched during a download.
TOUCH_SECONDS = 300.0


class _CompanionLocked(Exception):
    """The companion with this base name is locked by another thread or process."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A file to download: the base file of an image or of one of its companions.

    :ivar held: its lock and partial file, held until it is published
    """

    origin: source.Origin
    partial: partials.Partial
    held: contextlib.ExitStack
    is_companion: bool


@dataclasses.dataclass(frozen=True)
class _Work:
    """The transfer of one part.

    :ivar others_bytes: space reserved for the other parts
    :ivar is_last: no other part follows
    """

    part: _Part
    space: spaces.Reservation
    others_bytes: int
    progress: model.ProgressCallback
    control: controls.Control
    is_last: bool

    @property
    def origin(self) -> source.Origin:
        return self.part.origin

    @property
    def partial(self) -> partials.Partial:
        return self.part.partial

    @property
    def image(self) -> model.Image:
        return self.origin.image


class CachePopulator:
    """Fills one cache.

    :param force_raw: convert images of other formats to raw
    :param is_backing: returns whether a disk is based on the file with this path
    :param max_virtual_size_bytes: the largest disk that an image may hold; 0: any
    :param sync_rules: None: the defaults
    """

    def __init__(
        self,
        *,
        store: cache_store.CacheStore,
        space: spaces.CacheSpace,
        image_locks: locks.ImageLocks,
        downloader: engine.Downloader,
        inspector: formats.ImageInspector,
        converter: convert.Converter,
        pace: paces.HostRateLimit,
        force_raw: bool,
        is_backing: Callable[[str], bool],
        max_virtual_size_bytes: int = 0,
        sync_rules: partials.SyncRules | None = None,
    ) -> None:
        self._store = store
        self._space = space
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
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        """Bring the base files of an image and its companions into the cache, or touch them.

        Wait while another thread or process, also Nova, fetches the same image.

        :param needed: the companions that the image service names now; None: those that
            were noted when the image was cached
        :raises nova_precache.exception.CacheError: the image is not cached, for this reason
        """
        control = control or controls.Control()
        control.check()
        is_noted = needed is None or self._store.noted(layout.base_name(image_id)) == tuple(needed)
        if is_noted and self._touch_cached(image_id, control, needed):
            return model.CacheResult(existing=True)
        while True:
            try:
                return self._fill_locked(images, image_id, progress, control, needed)
            except _CompanionLocked as exc:
                with self._locks.hold(str(exc), control):
                    LOG.debug('Companion %s of image %s is unlocked', exc, image_id)

    def _fill_locked(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: controls.Control,
        needed: Sequence[model.Companion] | None,
    ) -> model.CacheResult:
        with contextlib.ExitStack() as stack:
            if control.is_boot:
                stack.enter_context(self._pace.boot())
            stack.enter_context(self._locks.hold(layout.base_name(image_id), control))
            stack.enter_context(self._clearing(image_id, control))
            if self._touch_cached(image_id, control, needed):
                if needed is not None:
                    self._store.note(layout.base_name(image_id), needed)
                return model.CacheResult(existing=True)
            stack.enter_context(self._locks.priority_boost(layout.base_name(image_id), control))
            stack.enter_context(self._pace.slot(control))
            return self._fill(images, image_id, progress, control)

    def _touch_cached(
        self,
        image_id: str,
        control: controls.Control,
        needed: Sequence[model.Companion] | None,
    ) -> bool:
        self._store.check_mounted()
        if needed is None:
            needed = self._store.noted(layout.base_name(image_id))
        return (
            needed is not None
            and self._store.is_hit(image_id)
            and all(self._touch_companion(each, control) for each in needed)
            and self._store.touch(image_id, is_boot=control.is_boot)
        )

    def _touch_companion(self, companion: model.Companion, control: controls.Control) -> bool:
        return self._store.has_companion(companion) and self._store.touch(
            companion.id, is_boot=control.is_boot
        )

    @contextlib.contextmanager
    def _clearing(self, image_id: str, control: controls.Control) -> Iterator[None]:
        """Remove the partial files on leaving, unless another attempt may resume them."""
        keeps = False
        try:
            yield
        except exception.CacheError as exc:
            keeps = control.keeps_partial(exc)
            raise
        except (_CompanionLocked, exception.ConfigError):
            keeps = True
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
        origin = control.run_interruptibly(
            lambda: source.ImageServiceSource.find(images, image_id), discard=lambda _: None
        )
        self._inspector.check_programs()
        with contextlib.ExitStack() as stack:
            parts = list(self._lacking_companions(origin, control, stack))
            is_hit = self._store.is_hit(image_id)
            if is_hit:
                self._store.note(layout.base_name(image_id), origin.image.needed)
            else:
                parts.append(self._open(origin, stack))
            size_bytes = 0
            if parts:
                with self._works(parts, progress, control) as works:
                    size_bytes = sum(map(self._publish, works))
            # After the companions: they are cached even if this file cannot be touched.
            if is_hit and not self._store.touch(image_id, is_boot=control.is_boot):
                raise exception.StorageError(
                    f'{self._store.layout.base_path(image_id)} was removed during the transfer'
                )
            if not parts:  # only the note was missing or outdated
                return model.CacheResult(existing=True)
        LOG.debug('Image %s is cached, %s', image_id, shown.size(size_bytes))
        return model.CacheResult(existing=False, bytes_done=size_bytes, bytes_total=size_bytes)

    def _lacking_companions(
        self,
        origin: source.ImageServiceSource,
        control: controls.Control,
        stack: contextlib.ExitStack,
    ) -> Iterator[_Part]:
        """Yield the missing companions, each with its lock held; touch the others."""
        for companion, needed in zip(origin.companions(), origin.image.needed, strict=True):
            held = stack.enter_context(contextlib.ExitStack())
            base_name = layout.base_name(needed.id)
            if not held.enter_context(self._locks.try_hold(base_name)):
                raise _CompanionLocked(base_name)
            if self._touch_companion(needed, control):
                held.close()
                continue
            self._store.check_place(needed.id)
            held.enter_context(self._clearing(needed.id, control))
            held.enter_context(self._locks.priority_boost(base_name, control))
            partial = held.enter_context(self._partials.open(companion.image))
            yield _Part(companion, partial, held, is_companion=True)

    def _open(self, origin: source.Origin, stack: contextlib.ExitStack) -> _Part:
        image = origin.image
        self._store.check_place(image.id)
        self._check_replaceable(image.id)
        if image.disk_format in formats.RAW_DISK_FORMATS:
            self._check_virtual_size(image.size or 0)
        held = stack.enter_context(contextlib.ExitStack())
        opening = self._partials.open(image, keep_pages=self._keeps_pages(image))
        return _Part(origin, held.enter_context(opening), held, is_companion=False)

    @contextlib.contextmanager
    def _works(
        self,
        parts: Sequence[_Part],
        progress: model.ProgressCallback,
        control: controls.Control,
    ) -> Iterator[Sequence[_Work]]:
        """Reserve space for all parts, and check that files of their sizes are allowed."""
        needed_bytes = [self._needed_bytes(each, each.origin.image.virtual_size) for each in parts]
        with self._space.reserve(
            sum(needed_bytes),
            [each.partial.converted_path for each in parts],
            lambda: sum(each.partial.passed_bytes for each in parts),
        ) as space:
            for part in parts:
                part.partial.check_space = space.check
                part.partial.check_size(part.origin.image.size or 0)
                if self._will_convert(part):
                    part.partial.check_converted(part.origin.image.virtual_size or 0)
            sizes = [each.origin.image.size for each in parts]
            known = [size for size in sizes if size is not None]
            total_bytes = sum(known) if len(known) == len(sizes) else None
            yield [
                _Work(
                    part,
                    space,
                    others_bytes=sum(needed_bytes) - needed_bytes[index],
                    progress=self._keeping_young(
                        _counting(progress, sum(known[:index]), total_bytes), part, control
                    ),
                    control=control,
                    is_last=part is parts[-1],
                )
                for index, part in enumerate(parts)
            ]

    def _publish(self, work: _Work) -> int:
        """Download and publish one part; return its size in bytes."""
        size_bytes = self._download(work)
        with _keeping(work):
            path = self._make_bootable(work, size_bytes)
            work.control.run_interruptibly(work.origin.check_unchanged, discard=lambda _: None)
            if work.is_last:
                work.control.run_interruptibly(work.control.confirm, discard=lambda _: None)
            work.control.check()
            if not work.part.is_companion:
                self._complete(work.image, work.control)
        self._store.publish(path, work.image.id)
        work.partial.release_readers()
        work.part.held.close()
        return size_bytes

    def _complete(self, image: model.Image, control: controls.Control) -> None:
        """Check that the companions are still cached, perhaps days later, and note them."""
        for companion in image.needed:
            if not self._touch_companion(companion, control):
                lost = exception.StorageError(
                    f'{self._store.layout.base_path(companion.id)}, which image {image.id} needs '
                    'to boot, was removed during the transfer'
                )
                lost.keeps_partial = True  # the next attempt fetches the companion alone
                raise lost
        self._store.note(layout.base_name(image.id), image.needed)

    def _keeping_young(
        self, progress: model.ProgressCallback, part: _Part, control: controls.Control
    ) -> model.ProgressCallback:
        """Touch the companions regularly during the download, which may take days."""
        image, clock = part.origin.image, self._downloader.clock
        touched_at = clock()

        def note(now: model.Progress) -> None:
            nonlocal touched_at
            if clock() - touched_at >= TOUCH_SECONDS:
                touched_at = clock()
                for companion in image.needed:
                    with contextlib.suppress(
                        exception.CacheError
                    ):  # checked again before publishing
                        self._touch_companion(companion, control)
            progress(now)

        return note

    def _check_replaceable(self, image_id: str) -> None:
        """Check that no disk is based on the file at the base file's path.

        A qcow2 file from before ``force_raw_images`` may have overlays that name its format:
        they would not start over a raw file.
        """
        path = self._store.layout.base_path(image_id)
        if os.path.exists(path) and self._is_backing(path):
            raise exception.StorageError(
                f'{path} is not raw but is the backing file of a disk, so it cannot be replaced'
            )

    def _check_virtual_size(self, virtual_size_bytes: int) -> None:
        if 0 < self._max_virtual_size_bytes < virtual_size_bytes:
            size, most = shown.excess(virtual_size_bytes, self._max_virtual_size_bytes)
            raise exception.UnsafeImage(
                f'virtual size of {size} exceeds max_virtual_size_bytes ({most})'
            )

    def _keeps_pages(self, image: model.Image) -> bool:
        memory_bytes = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
        is_small = (image.size or 0) <= memory_bytes * _KEPT_PAGES_SHARE
        return is_small and self._is_converted(image)

    def _needed_bytes(self, part: _Part, virtual_size_bytes: int | None) -> int:
        """Add up the space for the download and, if needed, the conversion."""
        download_bytes = max(part.origin.image.size or 0, part.partial.passed_bytes)
        return download_bytes + (virtual_size_bytes or 0 if self._will_convert(part) else 0)

    def _will_convert(self, part: _Part) -> bool:
        return not part.is_companion and self._is_converted(part.origin.image)

    def _is_converted(self, image: model.Image) -> bool:
        return self._force_raw and image.disk_format not in formats.RAW_DISK_FORMATS

    def _download(self, work: _Work) -> int:
        watcher: engine.Watcher = _Unwatched()
        if not work.part.is_companion:
            watcher = self._inspector.watch(
                work.image.disk_format, functools.partial(self._admit, work)
            )
        return self._downloader.download(
            work.origin, work.partial, watcher, work.control, work.progress
        )

    def _admit(self, work: _Work, virtual_size_bytes: int) -> None:
        """Check that the virtual size found in the image's bytes is allowed, and fits.

        It replaces the virtual size that the image service reported.
        """
        self._check_virtual_size(virtual_size_bytes)
        needed_bytes = self._needed_bytes(work.part, virtual_size_bytes)
        work.space.require(work.others_bytes + needed_bytes)
        if self._will_convert(work.part):
            work.partial.check_converted(virtual_size_bytes)

    def _make_bootable(self, work: _Work, size_bytes: int) -> str:
        """Inspect the image, convert it if required, and return the path of the result."""
        partial, control = work.partial, work.control
        if work.part.is_companion:
            return partial.path
        inspected = self._inspector.inspect(partial.path, work.image.disk_format, control)
        self._admit(work, inspected.virtual_size_bytes)
        if not self._force_raw or inspected.qemu_format == 'raw':
            return partial.path
        work.progress(model.Progress(model.TaskStatus.CONVERTING, size_bytes, work.image.size))
        self._converter.to_raw(partial.path, inspected, partial.converted_path, control)
        return partial.converted_path


def _counting(
    progress: model.ProgressCallback, before_bytes: int, total_bytes: int | None
) -> model.ProgressCallback:
    """Report the progress of one part as progress of all, after the parts before it."""
    return lambda now: progress(
        dataclasses.replace(now, bytes_done=before_bytes + now.bytes_done, bytes_total=total_bytes)
    )


class _Unwatched:
    """Ignore the bytes of a companion, which is not inspected."""

    def feed(self, data: memoryview) -> None:
        pass

    def restart(self) -> None:
        pass


@contextlib.contextmanager
def _keeping(work: _Work) -> Iterator[None]:
    """Keep the partial file on failure if another attempt may resume it, as a download does."""
    try:
        yield
    except exception.CacheError as exc:
        if work.control.keeps_partial(exc):
            target.keep(work.partial, work.image.id)
        raise
