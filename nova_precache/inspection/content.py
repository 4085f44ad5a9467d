# SPDX-License-Identifier: Apache-2.0
"""Recognise the format of bytes, with the inspectors of oslo.utils.

The inspectors are called one by one, not through the library's wrapper: so the answer is
available early, even if one inspector waits for the end of the file, and the exceptions of an
inspector never escape. The combined result is the same.

The inspectors always receive the bytes in the same pieces, from any source: the result for odd
images depends on where a piece ends. The first piece is as long as those that Nova reads; later
ones are longer, as each costs CPU time.

The functions import the inspectors: they import cryptography, 9 MB that an idle compute saves.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nova_precache import exception, files
from nova_precache.transfer_control import Control

if TYPE_CHECKING:
    from oslo_utils.imageutils import format_inspector

LOG = logging.getLogger(__name__)

_FIRST_BYTES = 4096
_SMALL_BYTES = 64 * 1024
_BIG_BYTES = 1024**2

# Formats that qemu recognises by their start and the inspectors do not: if a boot made qemu
# guess the format of the base file, it would not see a raw disk. No inspector uses these
# names, since nothing has checked such content.
_QEMU_ONLY = {
    'parallels': re.compile(rb'WithoutFreeSpace|WithouFreSpacExt'),
    'bochs': re.compile(rb'Bochs Virtual HD Image'),
    'cloop': re.compile(rb'#!/bin/sh\n#V2\.0 Format\nmodprobe cloop'),
    'vmdk version 3': re.compile(rb'COWD'),
    'vmdk descriptor': re.compile(rb'(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n'),
    'incomplete qcow2': re.compile(rb'QFI\xfb'),
    'incomplete qed': re.compile(rb'QED\0'),
    'incomplete vdi': re.compile(rb'(?s:.{64}\x7f\x10\xda\xbe.{,443})\Z'),
}
# The starts of the formats that both recognise. The inspectors decide the format of a file;
# these only serve a quick check of its start. A VHD of fixed size has its magic at the end, and
# is raw for qemu, too.
_CONVERTED = {
    'qcow2': re.compile(rb'QFI\xfb'),
    'qed': re.compile(rb'QED\0'),
    'vdi': re.compile(rb'(?s:.{64})\x7f\x10\xda\xbe'),
    'vhd': re.compile(rb'conectix'),
    'vhdx': re.compile(rb'vhdxfile'),
    'vmdk': re.compile(rb'KDMV|# Disk DescriptorFile'),
}
_NO_RAW = re.compile(
    b'|'.join(b'(?:%s)' % each.pattern for each in (*_CONVERTED.values(), *_QEMU_ONLY.values()))
)
START_BYTES = 512
# Their magic is not at the start of the image, which may begin like another format.
_BEGIN_AS_ANY = frozenset({'gpt', 'iso', 'vdi'})


def begins_as_image(start: bytes) -> bool:
    """Return whether a file with this start is an image of another format than raw.

    If base files are raw, Nova would have converted it. LUKS is not included: no converter
    has the key.

    :param start: the first ``START_BYTES`` of the file; all of a shorter one
    """
    return _NO_RAW.match(start) is not None


@dataclasses.dataclass(frozen=True)
class Content:
    """The recognised format of some bytes.

    :ivar inspector: the one of the format; None if no inspector knows it
    """

    name: str
    inspector: 'format_inspector.FileInspector | None' = None

    def check_safety(self) -> None:
        """Run the library's own checks.

        :raises nova_precache.exception.UnsafeImage: a check failed
        """
        from oslo_utils.imageutils import format_inspector

        if self.inspector is None:
            return
        try:
            self.inspector.safety_check()
        except format_inspector.SafetyCheckFailed as exc:
            reasons = ', '.join(sorted(str(reason) for reason in exc.failures.values()))
            raise exception.UnsafeImage(reasons) from exc
        except format_inspector.ImageFormatError as exc:
            raise exception.UnsafeImage(str(exc)) from exc


class Recogniser:
    """Feeds one image to the inspectors, piece by piece from its first byte.

    :param among: only these formats
    """

    def __init__(self, among: Sequence[str] | None = None) -> None:
        from oslo_utils.imageutils import format_inspector

        self.position = 0
        self._inspectors = [
            make()
            for name, make in format_inspector.ALL_FORMATS.items()
            if name != 'raw' and (among is None or name in among)
        ]
        self._failed: set[format_inspector.FileInspector] = set()
        self._start = b''

    @property
    def wanted_bytes(self) -> int:
        """Length of the next piece; only the image's last may be shorter."""
        if self.position == 0:
            return _FIRST_BYTES
        step = _SMALL_BYTES if self.position < _BIG_BYTES else _BIG_BYTES
        return step - self.position % step

    def take(self, piece: bytes) -> None:
        """Feed the next piece."""
        self._start = self._start or piece
        self.position += len(piece)
        for inspector in self._inspectors:
            if inspector in self._failed:
                continue
            try:
                inspector.eat_chunk(piece)
            except Exception as exc:  # noqa: BLE001 - hostile bytes may raise anything in a parser
                LOG.debug('Inspector %s failed: %s', inspector, exc)
                self._failed.add(inspector)

    def end(self) -> None:
        """Signal the end of the image."""
        for inspector in self._inspectors:
            inspector.finish()

    @property
    def is_named(self) -> bool:
        """Whether no further byte changes the name of the content."""
        return all(self._is_done(each) or _matches(each) for each in self._inspectors)

    @property
    def is_done(self) -> bool:
        """Whether no inspector needs any further byte."""
        return all(map(self._is_done, self._inspectors))

    def _is_done(self, inspector: 'format_inspector.FileInspector') -> bool:
        return inspector.complete or inspector in self._failed

    def content(self) -> Content:
        """Return the format recognised so far.

        :raises nova_precache.exception.UnsafeImage: several formats at once
        """
        found = {each.NAME: each for each in self._inspectors if _matches(each)}
        if found.keys() == {'iso', 'gpt'}:
            del found['gpt']
        only_qemu = self._qemu_only_format() if found.keys() <= _BEGIN_AS_ANY else None
        names = [*found, only_qemu] if only_qemu else [*found]
        if len(names) > 1:
            raise exception.UnsafeImage(f'several formats at once: {", ".join(sorted(names))}')
        for name, inspector in found.items():
            return Content(name, inspector)
        return Content(only_qemu or 'raw')

    def _qemu_only_format(self) -> str | None:
        found = (name for name, start in _QEMU_ONLY.items() if start.match(self._start))
        return next(found, None)


def _matches(inspector: 'format_inspector.FileInspector') -> bool:
    try:
        return inspector.format_match
    except AttributeError as exc:
        # Text followed by other data: the VMDK inspector raises.
        raise exception.UnsafeImage(f'cannot determine whether it is {inspector.NAME}') from exc


def recognise(
    path: str,
    among: Sequence[str] | None = None,
    control: Control | None = None,
    *,
    only_name: bool = False,
) -> Content:
    """Read a file as far as needed: 256 KiB of most, all of some.

    :param only_name: stop as soon as the format is certain
    :raises nova_precache.exception.UnsafeImage: several formats at once
    :raises nova_precache.exception.StorageError: the file could not be read
    :raises nova_precache.exception.TransferStopped: the control was stopped
    """
    recogniser = Recogniser(among)
    try:
        with open(path, 'rb', buffering=0, opener=files.regular_or_link) as file:
            while piece := file.read(recogniser.wanted_bytes):
                if control is not None:
                    control.check()
                recogniser.take(piece)
                if recogniser.is_done or (only_name and recogniser.is_named):
                    return recogniser.content()
    except OSError as exc:
        raise exception.storage_failure(f'Reading {path}', exc) from exc
    recogniser.end()
    return recogniser.content()
