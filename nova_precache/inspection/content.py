# SPDX-License-Identifier: Apache-2.0
"""Names the format of bytes, with the inspectors of oslo.utils.

They are asked one by one, and not through the library's wrapper: so an answer is had
as soon as there is one, also where some inspector waits for the end of the file, and
what an inspector stumbles over never gets out. What they answer together is the same.

The bytes reach the inspectors in the same pieces, wherever they come from: what an
inspector finds in odd images depends on where a piece ends. The first piece is as
long as those in which Nova reads; later ones are longer, as each costs CPU time.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence

from oslo_utils.imageutils import format_inspector

from nova_precache import exception, files
from nova_precache.transfer_control import Control

LOG = logging.getLogger(__name__)

_FIRST_BYTES = 4096
_SMALL_BYTES = 64 * 1024
_BIG_BYTES = 1024**2

# What qemu recognises by its start and the inspectors do not: a boot that let qemu
# guess the format of the base file would not see a raw disk. None of the names is
# one that an inspector gives, since nothing has checked what they name.
_QEMU_ONLY = {
    'parallels': re.compile(rb'WithoutFreeSpace|WithouFreSpacExt'),
    'bochs': re.compile(rb'Bochs Virtual HD Image'),
    'cloop': re.compile(rb'#!/bin/sh\n#V2\.0 Format\nmodprobe cloop'),
    'vmdk of version 3': re.compile(rb'COWD'),
    'vmdk descriptor': re.compile(rb'(?:#[^\n]*\n| +\r?\n)*version=[123]\r?\n'),
    'piece of qcow2': re.compile(rb'QFI\xfb'),
    'piece of qed': re.compile(rb'QED\0'),
    'piece of vdi': re.compile(rb'(?s:.{64}\x7f\x10\xda\xbe.{,443})\Z'),
}
# How those begin that both recognise. The inspectors name what is in a file; these only tell
# whether a file begins as one of them, for a look that takes no time. A VHD of fixed size has
# its magic at the end, and is raw for qemu too.
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
# Their magic is further on in the image, which may begin as something else.
_BEGIN_AS_ANY = frozenset({'gpt', 'iso', 'vdi'})


def begins_as_image(start: bytes) -> bool:
    """Return whether a file with this beginning is an image of another format than raw.

    Where files are raw, Nova would have converted it. LUKS is not among them: no converter
    has the key.

    :param start: its first ``START_BYTES``; all of a shorter one
    """
    return _NO_RAW.match(start) is not None


@dataclasses.dataclass(frozen=True)
class Content:
    """What some bytes are.

    :ivar inspector: of the format; None where no inspector knows it
    """

    name: str
    inspector: format_inspector.FileInspector | None = None

    def check_safety(self) -> None:
        """Run the library's own checks.

        :raises nova_precache.exception.UnsafeImage: what they found
        """
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
    """Shows one image to the inspectors, piece by piece from its first byte on.

    :param among: only these formats
    """

    def __init__(self, among: Sequence[str] | None = None) -> None:
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
        """How long the next piece is to be; only the image's last may be shorter."""
        if self.position == 0:
            return _FIRST_BYTES
        step = _SMALL_BYTES if self.position < _BIG_BYTES else _BIG_BYTES
        return step - self.position % step

    def take(self, piece: bytes) -> None:
        """Show the next piece."""
        self._start = self._start or piece
        self.position += len(piece)
        for inspector in self._inspectors:
            if inspector in self._failed:
                continue
            try:
                inspector.eat_chunk(piece)
            except Exception as exc:  # noqa: BLE001 - whatever hostile bytes do to a parser
                LOG.debug('The inspector of %s gives up: %s', inspector, exc)
                self._failed.add(inspector)

    def end(self) -> None:
        """Say that there are no more bytes."""
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

    def _is_done(self, inspector: format_inspector.FileInspector) -> bool:
        return inspector.complete or inspector in self._failed

    def content(self) -> Content:
        """Tell what was recognised so far.

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


def _matches(inspector: format_inspector.FileInspector) -> bool:
    try:
        return inspector.format_match
    except AttributeError as exc:
        # Text that turns into something else: the VMDK inspector cannot answer then.
        raise exception.UnsafeImage(f'whether it is {inspector.NAME} cannot be told') from exc


def recognise(
    path: str,
    among: Sequence[str] | None = None,
    control: Control | None = None,
    *,
    only_name: bool = False,
) -> Content:
    """Read a file as far as is needed: 256 KiB of most, all of some.

    :param only_name: no more is needed than to name the content
    :raises nova_precache.exception.UnsafeImage: several formats at once
    :raises nova_precache.exception.StorageError: the file could not be read
    :raises nova_precache.exception.TransferStopped: as the control has it
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
