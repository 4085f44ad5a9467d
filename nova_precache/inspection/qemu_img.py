# SPDX-License-Identifier: Apache-2.0
"""Run qemu-img within limits, since its input is untrusted.

The format of its input is always named, so that qemu-img never guesses it from
the content. Paths are absolute, since a relative one with a colon would be read
as a protocol.
"""

import dataclasses
import errno
import os
import re
import shutil
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from oslo_config import cfg
from oslo_serialization import jsonutils

from nova_precache import exception, shown
from nova_precache.inspection import pagecache, sandbox
from nova_precache.transfer_control import Control

# A disk that is slow or busy uses time but not CPU time.
WALL_SECONDS_PER_CPU_SECOND = 4
# Exit code of qemu-img with an error message; any other means that it was killed, most likely
# by a limit.
_EXIT_ERROR = 1
_LAUNCHER = re.compile(rf'({"|".join(sandbox.LAUNCHERS)}): ')
# An image may hold thousands of snapshots, whose names are in the output.
_MAX_INFO_BYTES = 1024**2
# Data that cannot be decompressed is an input/output error, too.
_BAD_CONTENT = 'error while reading'
_REASON_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


@dataclasses.dataclass(frozen=True)
class QemuImgLimits:
    """Resource limits of one run of qemu-img; the defaults are those of the options."""

    address_space_bytes: int = 4 * 1024**3
    convert_cpu_seconds: int = 1800
    inspect_cpu_seconds: int = 30

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'QemuImgLimits':
        return cls(
            address_space_bytes=conf.image_cache.convert_address_space_bytes,
            convert_cpu_seconds=conf.image_cache.convert_cpu_seconds,
            inspect_cpu_seconds=conf.image_cache.inspect_cpu_seconds,
        )


@dataclasses.dataclass(frozen=True)
class DiskInfo:
    """The output of ``qemu-img info`` about a file."""

    format: str
    virtual_size_bytes: int
    backing_file: str | None
    data_file: str | None
    encrypted: bool
    create_type: str | None
    extents: tuple[str, ...]


class QemuImg:
    """The program, with its limits.

    :param idle_priority: run it only while the host is otherwise idle, until it is urgent
    """

    def __init__(
        self,
        limits: QemuImgLimits | None = None,
        program: str = 'qemu-img',
        *,
        idle_priority: bool = False,
    ) -> None:
        self._limits = limits or QemuImgLimits()
        self._program = program
        self._idle_priority = idle_priority

    def check_installed(self) -> None:
        """Check that the program and its launchers are installed, and that it runs within limits.

        :raises nova_precache.exception.ConfigError: one is missing, or it does not run
        """
        try:
            self.check_programs()
            self._run(self._limits.inspect_cpu_seconds, '--version')
        except (exception.CacheError, QemuImgFailed) as exc:
            raise exception.ConfigError(f'qemu-img cannot be run on this host: {exc}') from exc

    def check_programs(self) -> None:
        """Check that the program and its launchers are still installed.

        :raises nova_precache.exception.ConversionFailed: one is missing
        """
        for program in (self._program, *sandbox.PROGRAMS):
            if shutil.which(program) is None:
                raise exception.ConversionFailed(f'{program} is not installed on this host')

    def info(self, path: str, qemu_format: str, control: Control | None = None) -> DiskInfo:
        """Describe a file, read in the given format.

        :raises nova_precache.exception.UnsafeImage: it cannot be read in that format
        :raises nova_precache.exception.ConversionFailed: qemu-img exceeded its limits
        :raises nova_precache.exception.StorageError: the file system refused
        :raises nova_precache.exception.TransferStopped: the control was stopped
        """
        try:
            output = self._run(
                self._limits.inspect_cpu_seconds,
                *('info', '--output=json', '-f', qemu_format, os.path.abspath(path)),
                control=control,
                file_bytes=_MAX_INFO_BYTES,
            )
        except QemuImgFailed as exc:
            raise exception.UnsafeImage(f'qemu-img cannot read it as {qemu_format}: {exc}') from exc
        return _disk_info(jsonutils.loads(output))

    def convert_to_raw(
        self, source: str, source_format: str, target: str, control: Control | None = None
    ) -> None:
        """Convert an image to a new raw file, without syncing it to the disk.

        :raises nova_precache.exception.ConversionFailed: it cannot be read to its end,
            or not within the limits
        :raises nova_precache.exception.NotEnoughSpace: the file system is full
        :raises nova_precache.exception.StorageError: the file system refused
        :raises nova_precache.exception.TransferStopped: the control was stopped
        """
        try:
            self._run(
                self._limits.convert_cpu_seconds,
                *('convert', '-f', source_format, '-O', 'raw', '-W'),
                *_cache_modes(source, target),
                *(os.path.abspath(source), os.path.abspath(target)),
                control=control,
            )
        except QemuImgFailed as exc:
            raise exception.ConversionFailed(f'qemu-img cannot convert it: {exc}') from exc
        except OSError as exc:
            raise exception.storage_failure(f'Converting to {target}', exc) from exc

    def create_overlay(
        self, target: str, backing_file: str, backing_format: str, size_bytes: int
    ) -> None:
        """Create a qcow2 overlay over a backing file.

        :raises nova_precache.exception.StorageError: qemu-img failed
        """
        try:
            self._run(
                self._limits.inspect_cpu_seconds,
                *('create', '-q', '-f', 'qcow2', '-b', os.path.abspath(backing_file)),
                *('-F', backing_format, os.path.abspath(target), str(size_bytes)),
            )
        except QemuImgFailed as exc:
            raise exception.StorageError(f'qemu-img cannot create {target}: {exc}') from exc

    def _run(
        self,
        cpu_seconds: int,
        *arguments: str,
        control: Control | None = None,
        file_bytes: int | None = None,
    ) -> str:
        """Run the program to its end.

        :raises QemuImgFailed: it rejected its input
        """
        wall_seconds = cpu_seconds * WALL_SECONDS_PER_CPU_SECOND
        limits = sandbox.ResourceLimits(
            self._limits.address_space_bytes, cpu_seconds, wall_seconds, file_bytes
        )
        try:
            ended = sandbox.run(
                [self._program, *arguments], limits, control, idle_priority=self._idle_priority
            )
        except TimeoutError as exc:
            raise exception.ConversionTimedOut(
                f'qemu-img {arguments[0]} took more than {wall_seconds} s'
            ) from exc
        except OSError as exc:
            raise exception.storage_failure('Starting qemu-img', exc) from exc
        if ended.exit_code != 0:
            raise self._failure(arguments, ended, cpu_seconds)
        return ended.output

    def _failure(
        self, arguments: Sequence[str], ended: sandbox.Ended, cpu_seconds: int
    ) -> Exception:
        """Build the error: distinguish limits and file system errors from a faulty image."""
        command, reason = arguments[0], _last_line(ended.errors)
        if ended.exit_code == -signal.SIGXFSZ:
            return QemuImgFailed(f'its description exceeds {shown.size(_MAX_INFO_BYTES)}')
        was_ended = ended.exit_code != _EXIT_ERROR or _LAUNCHER.match(reason)
        if was_ended or os.strerror(errno.ENOMEM) in reason:
            return exception.ConversionFailed(
                f'qemu-img {command} was ended with exit code {ended.exit_code} (limits: '
                f'{shown.size(self._limits.address_space_bytes)} of address space, '
                f'{cpu_seconds} s of CPU time): {reason}'
            )
        if reason.startswith(_BAD_CONTENT):
            return QemuImgFailed(reason)
        for number in _REASON_ERRNOS:
            if os.strerror(number) in reason:
                # The last file is the one that it writes, if it writes one.
                paths = [each for each in arguments if os.path.isabs(each)]
                doing = ' '.join(['qemu-img', command, *paths[-1:]])
                return exception.storage_failure(doing, OSError(number, os.strerror(number)))
        return QemuImgFailed(reason)


class QemuImgFailed(Exception):
    """qemu-img ended with an error about its input."""


def _cache_modes(source: str, target: str) -> Iterator[str]:
    """Return options that keep the conversion out of the page cache, which the guests need.

    A source that the download left there is read from it, in half the time.
    """
    if pagecache.takes_direct_writes(target):
        yield from ('-t', 'none')
        if not pagecache.is_mostly_cached(source):
            yield from ('-T', 'none')


def _last_line(stderr: str) -> str:
    """Return the message without the program's name and the paths of this host."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    message = lines[-1] if lines else 'no message'
    return re.sub(r"^qemu-img: (Could not open '[^']*': )*", '', message)


def _disk_info(document: dict[str, Any]) -> DiskInfo:
    details = (document.get('format-specific') or {}).get('data') or {}
    return DiskInfo(
        format=document['format'],
        virtual_size_bytes=document['virtual-size'],
        backing_file=document.get('backing-filename'),
        data_file=details.get('data-file'),
        encrypted=bool(document.get('encrypted')),
        create_type=details.get('create-type'),
        extents=tuple(extent['filename'] for extent in details.get('extents') or ()),
    )
