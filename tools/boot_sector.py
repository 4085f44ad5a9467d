# SPDX-License-Identifier: Apache-2.0
"""A guest without an operating system: the boot sector of a disk, which reports that it booted."""

import struct

LINE = 'A guest of nova-precache has booted'
SIZE_BYTES = 512


def content(line: str = LINE) -> bytes:
    """Return the first sector of a disk that, once booted, writes a line to COM1 and halts.

    It has a partition, since Nova takes a disk without one for no disk.
    """
    code = bytes.fromhex(
        '31c0 8ed8 be237c fc'  # ds:si is the text, which follows at 0x7c23
        'ac 84c0 7412 88c3'  # next: take a character; after the last one halt
        'bafd03 ec a820 74fb'  # wait until COM1 takes one
        'baf803 88d8 ee ebe9'  # write it; go to next
        'fa f4 ebfc'  # halt
    )
    text = f'{line}\r\n'.encode('ascii') + b'\0'
    partition = struct.pack('<B3BB3BII', 0x80, 0, 2, 0, 0x83, 0xFF, 0xFF, 0xFF, 1, 2047)
    return (code + text).ljust(446, b'\0') + partition + bytes(48) + b'\x55\xaa'
