# SPDX-License-Identifier: Apache-2.0
"""Brings the bytes of an image from a source into a file, verified on their way."""

import io
import logging

from nova_precache import exception, model
from nova_precache.download import retry, verifier
from nova_precache.download.source import Source

LOG = logging.getLogger(__name__)


class Downloader:
    """Downloads whole images; it does not know what kind of source it reads.

    :param allow_unverified: take images of which no hash is known
    """

    def __init__(
        self, *, allow_unverified: bool = False, resume: retry.ResumePolicy | None = None
    ) -> None:
        self._allow_unverified = allow_unverified
        self._resume = resume or retry.ResumePolicy()

    def download(self, source: Source, file: io.FileIO, progress: model.ProgressCallback) -> int:
        """Write the image into an empty file, and give the number of its bytes.

        A cut connection is resumed where it broke. The file is verified but not
        synchronised with the disk: whoever publishes it does that.

        :raises nova_precache.exception.UnverifiedImage: no hash of the image is known
        :raises nova_precache.exception.ImageMismatch: other bytes came than Glance hashed
        :raises nova_precache.exception.DownloadInterrupted: cut, also after resuming
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file cannot be written
        :raises nova_precache.exception.CacheError: as the source has it
        """
        check = verifier.Verifier(source.image, allow_unverified=self._allow_unverified)
        for attempt in self._resume.opens():
            with attempt:
                _receive(source, file, check, progress)
        progress(_progress(model.TaskStatus.VERIFYING, source.image, check))
        check.check()
        return check.bytes_done


def _receive(
    source: Source,
    file: io.FileIO,
    check: verifier.Verifier,
    progress: model.ProgressCallback,
) -> None:
    """Read what is still to come, until the source ends."""
    if check.bytes_done:
        if check.bytes_done == source.image.size:
            return  # The connection broke after the last byte.
        LOG.info('Image %s is resumed at byte %d', source.image.id, check.bytes_done)
    with source.open(check.bytes_done) as chunks:
        for chunk in chunks:
            check.update(chunk)
            _write(file, chunk)
            progress(_progress(model.TaskStatus.DOWNLOADING, source.image, check))
    if not check.complete:
        raise exception.DownloadInterrupted(
            f'Image {source.image.id} ended after {check.bytes_done} of {source.image.size} bytes'
        )


def _write(file: io.FileIO, chunk: bytes) -> None:
    """Write all of a chunk: without a buffer, one write may take only a part."""
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as exc:
        raise exception.storage_failure(f'Writing {file.name!r}', exc) from exc


def _progress(
    status: model.TaskStatus, image: model.Image, check: verifier.Verifier
) -> model.Progress:
    return model.Progress(status, check.bytes_done, image.size)
