# SPDX-License-Identifier: Apache-2.0
"""Verify that the received bytes are those that Glance hashed at upload."""

import hashlib
import hmac

from nova_precache import exception, model


class Verifier:
    """Counts and hashes the bytes of one image, in order.

    Glance's multihash decides; without one, the older MD5 checksum does. One thread may count
    bytes that another one hashes later.

    :raises nova_precache.exception.UnverifiedImage: the image has neither, or its algorithm
        is not available here, and ``allow_unverified`` is not set
    """

    def __init__(self, image: model.Image, *, allow_unverified: bool) -> None:
        self.bytes_done = 0
        self._image = image
        self._algorithm, self._expected = _known_hash(image)
        self._hash = _new_hash(self._algorithm)
        if self._hash is None and not allow_unverified:
            raise exception.UnverifiedImage(_why_unverified(image))

    def restart(self) -> None:
        """Discard all bytes."""
        self.bytes_done = 0
        self._hash = _new_hash(self._algorithm)

    def count(self, length: int) -> None:
        """Count the next bytes.

        :raises nova_precache.exception.ImageMismatch: they exceed the size of the image
        """
        size = self._image.size
        if size is not None and self.bytes_done + length > size:
            raise exception.ImageMismatch(f'Image {self._image.id} has more than {size} bytes')
        self.bytes_done += length

    def hash(self, data: memoryview) -> None:
        """Hash the next bytes."""
        if self._hash is not None:
            self._hash.update(data)

    @property
    def is_complete(self) -> bool:
        """Whether all bytes were received; False if the size is not known."""
        return self.bytes_done == self._image.size

    def check(self) -> None:
        """Compare the hash with Glance's.

        :raises nova_precache.exception.ImageMismatch: they differ
        """
        if self._hash is None:
            return
        found = self._hash.hexdigest()
        if not hmac.compare_digest(found, self._expected.lower()):
            raise exception.ImageMismatch(
                f'Image {self._image.id}: {self._algorithm} of the {self.bytes_done} received '
                f'bytes is {found[:16]}…, Glance has {self._expected[:16]}…'
            )


def _known_hash(image: model.Image) -> tuple[str, str]:
    if image.hash_algo and image.hash_value:
        return image.hash_algo, image.hash_value
    return ('md5', image.checksum) if image.checksum else ('', '')


def _new_hash(algorithm: str) -> 'hashlib._Hash | None':
    try:
        found = hashlib.new(algorithm, usedforsecurity=False)
    except ValueError:
        return None
    # The shake functions have no fixed digest length, so Glance cannot have used one.
    return found if found.digest_size else None


def _why_unverified(image: model.Image) -> str:
    if image.hash_algo and image.hash_value:
        return f'Image {image.id} has a {image.hash_algo} hash, which this host does not support'
    return f'Glance has no hash of image {image.id}'
