# SPDX-License-Identifier: Apache-2.0
"""What another process may have put where a small file is looked for."""

import os
import pathlib
import socket
from collections.abc import Callable

Put = Callable[[pathlib.Path], None]

SPARSE_BYTES = 10 * 1024**3


def _socket(path: pathlib.Path) -> None:
    # The path of a socket may not be long.
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f'/proc/self/fd/{here}/{path.name}')
        finally:
            os.close(here)


def _sparse(path: pathlib.Path) -> None:
    path.touch()
    os.truncate(path, SPARSE_BYTES)


def _link_to_a_file(path: pathlib.Path) -> None:
    target = path.with_name(f'{path.name}-of-somebody-else')
    target.write_text('precious')
    path.symlink_to(target)


def _hard_link(path: pathlib.Path) -> None:
    other = path.with_name(f'{path.name}-of-somebody-else')
    other.write_text('precious')
    os.link(other, path)


# By what an error calls it.
NOT_REGULAR: dict[str, Put] = {
    'a FIFO': os.mkfifo,
    'a directory': pathlib.Path.mkdir,
    'a socket': _socket,
    'a symbolic link': _link_to_a_file,
}
DANGLING: Put = lambda path: path.symlink_to(path.parent / 'nowhere')  # noqa: E731
DEVICE: Put = lambda path: path.symlink_to('/dev/zero')  # noqa: E731
LOOP: Put = lambda path: path.symlink_to(path)  # noqa: E731
IRREGULAR: dict[str, Put] = {
    **NOT_REGULAR,
    'a dangling symbolic link': DANGLING,
    'a link to a device': DEVICE,
    'a loop of links': LOOP,
}
# Regular files that hold nothing that is understood.
DAMAGED: dict[str, Put] = {
    'nothing': pathlib.Path.touch,
    'text': lambda path: path.write_text('no uuid') and None,
    'what is cut short': lambda path: path.write_text('155d900f-4e14-4e4c-a73d') and None,
    'no ASCII': lambda path: path.write_bytes('155d900f-ü'.encode()) and None,
    'no UTF-8': lambda path: path.write_bytes(b'\xff\xfe' * 18) and None,
    'NULs': lambda path: path.write_bytes(bytes(36)) and None,
    'too much': lambda path: path.write_text('1' * 301) and None,
    'digits of another script': lambda path: path.write_text('٣' * 32) and None,
    '10 GiB of holes': _sparse,
    'what has another name, too': _hard_link,
}
