# SPDX-License-Identifier: Apache-2.0
"""Where the bytes of one image come from: Glance today, peers of the site later."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import exception, model
from nova_precache.image import service


class Source(Protocol):
    """The bytes of one image and what they must add up to."""

    @property
    def image(self) -> model.Image:
        """The image: size, hash and format to verify against."""

    def open(self, offset_bytes: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Open the bytes from an offset on; leaving the context cuts the connection.

        :raises nova_precache.exception.CacheError: as the kind of source has it
        """


class ImageServiceSource:
    """The bytes as the image service serves them."""

    def __init__(self, images: service.ImageService, image: model.Image) -> None:
        self._images = images
        self.image = image

    @classmethod
    def find(cls, images: service.ImageService, image_id: str) -> 'ImageServiceSource':
        """Look an image up, for a download that is about to begin.

        :raises nova_precache.exception.ImageGone: it is not there, or not active
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: the image service gives no answer
        """
        try:
            image = images.show(image_id)
        except exception.ImageNotUsable as exc:
            raise exception.ImageGone(str(exc)) from exc
        except exception.ImageServiceUnavailable as exc:
            raise exception.DownloadInterrupted(str(exc)) from exc
        _check_usable(image, image_id)
        return cls(images, image)

    def open(self, offset_bytes: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        return self._images.open(self.image.id, offset_bytes)


def _check_usable(image: model.Image, image_id: str) -> None:
    if image.id != image_id:
        # Its base file would have a name that no boot looks for.
        raise exception.ImageGone(f'Image {image_id} is spelled {image.id} by the image service')
    if image.status != 'active':
        raise exception.ImageGone(f'Image {image_id} is {image.status}')
    if image.size == 0:
        raise exception.ImageGone(f'Image {image_id} has no data')
