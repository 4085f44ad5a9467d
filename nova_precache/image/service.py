# SPDX-License-Identifier: Apache-2.0
"""The seam to the image service; ``glance`` and ``fake`` stand behind it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import model


class ImageService(Protocol):
    """One caller's view of the image service."""

    def show(self, image_id: str) -> model.Image:
        """Give the metadata of an image, its id in Glance's spelling.

        :raises nova_precache.exception.ImageNotUsable: unknown, or hidden from the caller
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.ImageServiceUnavailable: no answer, or a server error
        """

    def is_member(self, image_id: str, project_id: str) -> bool:
        """Tell whether the image is shared with the project and was accepted by it.

        Raises as :meth:`show`.
        """

    def open(self, image_id: str, offset_bytes: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Open the image's data from ``offset_bytes`` on, as chunks.

        Leaving the context closes the connection at once.

        :raises nova_precache.exception.ImageGone: deleted, deactivated or without data
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: no connection, or it broke while
            chunks were read
        """
