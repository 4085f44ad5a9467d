# SPDX-License-Identifier: Apache-2.0
"""The sources of an image's bytes: Glance today, peers of the site later."""

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import exception, model
from nova_precache.image import bootable, companions, service


class Source(Protocol):
    """A place from which the bytes of one image can be read."""

    def open(self, offset_bytes: int = 0) -> AbstractContextManager[service.Connection]:
        """Open the bytes from an offset on; leaving the context closes the connection.

        :raises nova_precache.exception.DownloadInterrupted: it broke; it may be opened again
        :raises nova_precache.exception.CacheError: depends on the kind of source
        """


class Origin(Source, Protocol):
    """The source that defines an image: the size and hash that all bytes must match."""

    @property
    def image(self) -> model.Image:
        """The image: size, hash and format to verify against."""

    def check_unchanged(self) -> None:
        """Check that the image is still available, and unchanged since it was looked up.

        :raises nova_precache.exception.CacheError: depends on the kind of source
        """


class SourceChooser(Protocol):
    """Chooses where downloads read; thread-safe."""

    def choose(self, origin: Origin, offset_bytes: int) -> Source:
        """Return the source of the bytes from an offset on; called before each open.

        A download counts the faults of each source: the same source must be returned as the
        same or as an equal object. The call may wait; a download that is stopped abandons it.

        :param origin: the image as the image service serves it
        :raises nova_precache.exception.CacheError: the download ends, and keeps its bytes if
            the error permits it
        """


class OriginOnly:
    """Chooses the image service for all downloads."""

    def choose(self, origin: Origin, offset_bytes: int) -> Source:
        return origin


class ImageServiceSource:
    """The bytes that the image service serves.

    :param companion_of: the source of the image whose kernel or ramdisk this is; the two are
        looked up together
    """

    def __init__(
        self,
        images: service.ImageService,
        image: model.Image,
        companion_of: 'ImageServiceSource | None' = None,
    ) -> None:
        self._images = images
        self.image = image
        self._companion_of = companion_of

    @classmethod
    def find(cls, images: service.ImageService, image_id: str) -> 'ImageServiceSource':
        """Look up an image and its companions before their download.

        :raises nova_precache.exception.ImageGone: one does not exist, or is not active
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: the image service does not answer
        :raises nova_precache.exception.UnbootableImage: libvirt boots no root disk from it
        """
        return cls(images, _look_up(images, image_id))

    def companions(self) -> 'tuple[ImageServiceSource, ...]':
        """Return the sources of the companions that were looked up with the image."""
        return tuple(ImageServiceSource(self._images, each, self) for each in self.image.companions)

    @contextlib.contextmanager
    def open(self, offset_bytes: int = 0) -> Iterator[service.Connection]:
        """Open the bytes; to resume, check first that the image is unchanged.

        :raises nova_precache.exception.ImageMismatch: the image has changed since it was found
        :raises nova_precache.exception.CacheError: as :meth:`find` and the image service raise
        """
        if offset_bytes:
            self.check_unchanged()
        with self._images.open(self.image.id, offset_bytes, self.image.size) as connection:
            yield connection

    def check_unchanged(self) -> None:
        """Look up the image and its companions again, and compare.

        Their status is checked, too: an admin of Glance can read deactivated images.

        :raises nova_precache.exception.ImageMismatch: the image has changed since it was found
        :raises nova_precache.exception.CacheError: as :meth:`find` raises
        """
        if self._companion_of is not None:
            self._companion_of.check_unchanged()
            return
        _check_same(self.image, _look_up(self._images, self.image.id))


def _look_up(images: service.ImageService, image_id: str) -> model.Image:
    image = _usable(images, image_id)
    if image.id != image_id:
        # Its base file would have a name that no boot looks for.
        raise exception.ImageGone(
            f'The image service spells the id of image {image_id} as {image.id}'
        )
    why = bootable.why_no_root_disk(image)
    if why is not None:
        raise exception.UnbootableImage(f'Image {image_id} {why}')
    try:
        return companions.look_up(image, functools.partial(_usable, images))
    except exception.ImageNotUsable as exc:
        raise exception.ImageGone(str(exc)) from exc


def _usable(images: service.ImageService, image_id: str) -> model.Image:
    try:
        image = images.show(image_id)
    except exception.ImageNotUsable as exc:
        raise exception.ImageGone(str(exc)) from exc
    except exception.ImageServiceUnavailable as exc:
        raise exception.DownloadInterrupted(str(exc)) from exc
    _check_usable(image, image_id)
    return image


def _check_usable(image: model.Image, image_id: str) -> None:
    if image.status != 'active':
        raise exception.ImageGone(f'Image {image_id} is {image.status}')
    if image.size == 0:
        raise exception.ImageGone(f'Image {image_id} has no data')
    why = bootable.why_unbootable(image)
    if why is not None:
        raise exception.UnbootableImage(f'Image {image_id} {why}')


def _check_same(begun: model.Image, now: model.Image) -> None:
    if _content(now) != _content(begun):
        raise exception.ImageMismatch(
            f'Image {begun.id} changed its size or hash after its download began'
        )
    if tuple(map(_content, now.companions)) != tuple(map(_content, begun.companions)):
        raise exception.ImageMismatch(
            f'Image {begun.id} changed its kernel or ramdisk after its download began'
        )


def _content(image: model.Image) -> tuple[object, ...]:
    return image.id, image.size, image.hash_algo, image.hash_value, image.checksum
