# SPDX-License-Identifier: Apache-2.0
"""The seam to the image service; ``glance`` and ``fake`` stand behind it."""

import re
from contextlib import AbstractContextManager
from typing import Protocol

from nova_precache import model

# Glance accepts no other spelling of an id, and nothing else gets into a URL.
IMAGE_ID = re.compile(r'[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}')


class Connection(Protocol):
    """An open connection, over which the bytes of an image come."""

    @property
    def start_bytes(self) -> int | None:
        """With which byte of the image it begins; None: with none that the answer tells.

        It is the one that was asked for, or 0 where all of the image comes instead. With
        None there is nothing to read: whoever asked opens it again from 0 on.
        """

    def read_into(self, buffer: memoryview) -> int:
        """Wait for bytes, and give the number of those that came, at least one; 0 is the end.

        :raises nova_precache.exception.DownloadInterrupted: it broke, stalled or was cut
        """

    def cut(self) -> None:
        """Break it, from whatever thread and at whatever time: whoever reads is told at once."""


class ImageService(Protocol):
    """One caller's view of the image service."""

    def show(self, image_id: str) -> model.Image:
        """Give the metadata of an image, its id in Glance's spelling.

        :raises nova_precache.exception.ImageNotUsable: unknown, or hidden from the caller
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.ImageServiceUnavailable: no answer, or a server error
        """

    def is_member(self, image_id: str, project_id: str) -> bool:
        """Return whether the image is shared with the project, whatever the project answered.

        A member whose status is pending or rejected does not find the image in its lists, and
        yet Glance shows and serves it. Raises as :meth:`show`.
        """

    def open(
        self, image_id: str, offset_bytes: int = 0, size_bytes: int | None = None
    ) -> AbstractContextManager[Connection]:
        """Open the image's data from ``offset_bytes`` on.

        Entering the context asks for them; leaving it closes the connection at once.

        :param size_bytes: how many the image has; an answer with a part of another number
            of bytes begins with none that is wanted
        :raises nova_precache.exception.ImageGone: deleted, deactivated or without data
        :raises nova_precache.exception.ImageUnauthorized: the token was refused
        :raises nova_precache.exception.DownloadInterrupted: no connection
        """
