# SPDX-License-Identifier: Apache-2.0
"""The images to measure with, and their Glance."""

import os
import pathlib
import random
import socket
import subprocess
import uuid

import requests

from nova_precache.standalone import glance, process

KIB = 1024
MIB = 1024**2
GIB = 1024**3
_UPLOAD_SECONDS = 1800
# Glance then writes no zeros, so that holes of an image take no disk.
_STORE = """
[local]
filesystem_thin_provisioning = true
filesystem_store_chunk_size = {chunk_bytes}
"""


class Tuned(glance.GlanceServer):
    """A Glance that keeps holes, and sends as fast as it can.

    By default it uses the default congestion control of Linux. BBR, which some machines use
    instead, waits for a timer before each packet, even on the loopback.

    :ivar chunk_bytes: size of the chunks that it reads and sends
    :ivar congestion_control: a name that the kernel knows
    """

    chunk_bytes = MIB
    congestion_control = 'cubic'

    def _listen(self) -> socket.socket:
        listener = super()._listen()
        name = self.congestion_control
        try:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError as exc:
            listener.close()
            raise process.ServerFailed(f'no congestion control {name}: {exc}') from exc
        return listener

    def _write_configuration(self, home: pathlib.Path) -> None:
        super()._write_configuration(home)
        with (self.directory / 'glance-api.conf').open('a') as file:
            file.write(_STORE.format(chunk_bytes=self.chunk_bytes))


class Glance(Tuned):
    """A Glance without authentication.

    :param chunk_bytes: by default that of Glance
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        chunk_bytes: int = 64 * KIB,
        congestion_control: str = 'cubic',
    ) -> None:
        super().__init__(directory, check_formats=False)
        self.chunk_bytes = chunk_bytes
        self.congestion_control = congestion_control

    def stored(self, image_id: str) -> pathlib.Path:
        """Return the path of the data of an image."""
        return self.directory / 'images' / image_id

    def upload(self, path: pathlib.Path, disk_format: str) -> str:
        """Upload a file as a public image and return its id."""
        image_id = str(uuid.uuid4())
        images = f'{self.url}/v2/images'
        description = {
            'id': image_id,
            'name': path.name,
            'visibility': 'public',
            'container_format': 'bare',
            'disk_format': disk_format,
        }
        requests.post(images, json=description, timeout=60).raise_for_status()
        with path.open('rb') as file:
            requests.put(
                f'{images}/{image_id}/file',
                data=file,
                headers={'Content-Type': 'application/octet-stream'},
                timeout=_UPLOAD_SECONDS,
            ).raise_for_status()
        return image_id


def random_data(path: pathlib.Path, size_bytes: int, seed: int) -> pathlib.Path:
    """Create a raw image of data that does not compress."""
    return holes(path, size_bytes, size_bytes, seed)


def holes(path: pathlib.Path, size_bytes: int, data_bytes: int, seed: int) -> pathlib.Path:
    """Create a raw image of pieces of data of at most 1 MiB, with equal holes between.

    Pieces begin at blocks of the file system. The first sector is zero, so that no format is
    detected in it by chance.
    """
    random_bytes = random.Random(seed).randbytes  # noqa: S311 - the same for the same seed
    count = -(-data_bytes // MIB)
    stride = size_bytes // count // (4 * KIB) * (4 * KIB)
    with path.open('wb') as file:
        file.truncate(size_bytes)
        for number in range(count):
            file.seek(number * stride)
            file.write(random_bytes(min(MIB, data_bytes - number * MIB)))
        file.seek(0)
        file.write(bytes(512))
    return path


def converted(source: pathlib.Path, path: pathlib.Path, *options: str) -> pathlib.Path:
    """Convert a raw image; the options name the format."""
    command = ['qemu-img', 'convert', '-f', 'raw', *options, str(source), str(path)]
    subprocess.run(process.dies_with_parent(command, 'KILL'), check=True)
    return path


def warm(path: pathlib.Path) -> None:
    """Read a file into the page cache, so that serving it needs no disk."""
    buffer = bytearray(MIB)
    with path.open('rb', buffering=0) as file:
        while file.readinto(buffer):
            pass


def drop_page_cache() -> bool:
    """Write back dirty pages and drop the page cache; return False if that is not permitted."""
    os.sync()
    try:
        pathlib.Path('/proc/sys/vm/drop_caches').write_text('1')
    except OSError:
        return False
    return True
