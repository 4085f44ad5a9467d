# SPDX-License-Identifier: Apache-2.0
"""The interface of the image service; implemented by ``glance`` and ``fake``."""

import re
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import model

# Glance accepts no other spelling of an id; only matching ids are put into a URL.
IMAGE_ID = re.compile(r'[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}')


class Connection(Protocol):
    """An open connection that delivers the bytes of an image."""

    @property
    def start_bytes(self) -> int | None:
        """The offset of the first byte in the image; None: the answer does not give it.

        It is the requested one, or 0 if the whole image is sent instead. With None there is
        nothing to read: the caller opens the image again from 0.
        """

    def read_into(self, buffer: memoryview) -> int:
        """Wait for bytes, and return the number received, at least one; 0 is the end.

        :raises nova_precache.exception.DownloadInterrupted: it broke, stalled or was cut
        """

    def cut(self) -> None:
        """Cut the connection, from any thread at any time: a waiting reader fails at once."""


class ImageService(Protocol):
    """One caller's view of the image service."""

    def show(self, image_id: str) -> model.Image:
        """Return the metadata of an image, with its id in Glance's spelling.

        :raises nova_precache.exception.ImageNotUsable: unknown, or hidden from the caller
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.ImageServiceUnavailable: no answer, or a server error
        """

    def is_member(self, image_id: str, project_id: str) -> bool:
        """Return whether the image is shared with the project, whatever its member status.

        A member whose status is pending or rejected does not see the image in its lists, but
        Glance shows and serves it. Raises as :meth:`show`.
        """

    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> AbstractContextManager[Connection]:
        """Open the image's data from ``offset_bytes`` on.

        Entering the context sends the request; leaving it closes the connection at once.

        :param size_bytes: size of the image; a partial answer of an image of another size has
            None as its start
        :raises nova_precache.exception.ImageGone: deleted, deactivated or without data
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: no connection
        """
