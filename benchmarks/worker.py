# SPDX-License-Identifier: Apache-2.0
"""Our libvirt driver in a process of its own: reads commands and prints results, a line each.

It is a compute without its conductor, so that the driver alone is measured. Commands run in
parallel, each in a thread, as on a compute; a result carries the id of its command.
"""

import contextlib
import functools
import hashlib
import http.client
import json
import logging
import os
import statistics
import sys
import threading
import time
import traceback
import urllib.parse
from collections.abc import Iterator
from typing import Any

from benchmarks import lower_bound
from nova_precache import conf as precache_conf, exception, model, transfer_control
from nova_precache.image import glance
from nova_precache.virt import libvirt

PIECE_BYTES = 1024**2


class Worker:
    """The driver; the public methods are the commands."""

    def __init__(self, glance_url: str, options: dict[str, dict[str, Any]]) -> None:
        conf = precache_conf.new([], [])
        for group, values in options.items():
            for name, value in values.items():
                conf.set_override(name, value, None if group == 'DEFAULT' else group)
        self._glance_url = glance_url
        self._glance = glance.GlanceSettings.from_conf(conf)
        self._session = glance.new_session(self._glance)
        self._driver = libvirt.LibvirtDriver(conf)
        self._driver.init_host()
        self._running: dict[str, transfer_control.Control] = {}

    def cache_image(self, image_id: str) -> str:
        """Cache an image as a compute does for a precache request."""
        result = self._driver.cache_image(self._images(), image_id, lambda progress: None)
        return 'existing' if result.existing else 'cached'

    def controlled(self, image_id: str, transfer: str) -> str:
        """Cache an image so that :meth:`stop` can stop it."""
        control = self._running[transfer] = transfer_control.Control()
        try:
            result = self._driver.cache_image(
                self._images(), image_id, lambda progress: None, control
            )
        finally:
            del self._running[transfer]
        return 'existing' if result.existing else 'cached'

    def stop(self, transfer: str, error: str) -> bool:
        """Stop a controlled transfer with an error of this name; return False if it has ended."""
        control = self._running.get(transfer)
        if control is None:
            return False
        control.stop(getattr(exception, error)(f'{error} by the soak'))
        return True

    def boot(self, image_id: str, instance: str) -> str:
        """Create a root disk as a boot does and return its path."""
        return self._driver.create_root_disk(self._images(), image_id, instance).path

    def clean(self) -> None:
        """Run one round of the image cache manager."""
        self._driver.manage_image_cache()

    def touches(self, image_id: str, count: int) -> float:
        """Cache a cached image many times and return the median seconds of a call."""
        images = self._images()
        taken = []
        for _ in range(count):
            start = time.perf_counter()
            result = self._driver.cache_image(images, image_id, lambda progress: None)
            taken.append(time.perf_counter() - start)
            if not result.existing:
                raise ValueError(f'image {image_id} was not cached')
        return statistics.median(taken)

    def receive(self, image_id: str) -> None:
        """Read an image and discard it, to measure how fast Glance sends."""
        with self._data(image_id) as answer:
            piece = bytearray(PIECE_BYTES)
            while answer.readinto(piece):
                pass

    def least(self, image_id: str, target: str) -> None:
        """Receive, hash and write an image without any other step."""
        with self._data(image_id) as answer:
            lower_bound.download(answer, target)

    @contextlib.contextmanager
    def _data(self, image_id: str) -> Iterator[http.client.HTTPResponse]:
        url = urllib.parse.urlsplit(self._glance_url)
        connection = http.client.HTTPConnection(url.netloc)
        with contextlib.closing(connection):
            connection.request('GET', f'/v2/images/{image_id}/file')
            yield connection.getresponse()

    def hash_file(self, path: str) -> float:
        """Hash a file that is in memory and return the seconds of the hash alone."""
        with open(path, 'rb') as file:
            pieces = list(iter(functools.partial(file.read, PIECE_BYTES), b''))
        found = hashlib.sha512()
        start = time.perf_counter()
        for piece in pieces:
            found.update(piece)
        return time.perf_counter() - start

    def write_file(self, path: str, target: str) -> None:
        """Copy a file that is in memory and sync the copy to the disk."""
        piece = bytearray(PIECE_BYTES)
        with open(path, 'rb', buffering=0) as source, open(target, 'wb', buffering=0) as file:
            while count := source.readinto(piece):
                file.write(memoryview(piece)[:count])
            os.fsync(file.fileno())

    def _images(self) -> glance.GlanceImageService:
        return glance.GlanceImageService.with_token(
            self._glance, endpoint=self._glance_url, token=None, session=self._session
        )


def main() -> None:
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(levelname)s %(message)s')
    # urllib3 logs that a pool is full.
    logging.getLogger('urllib3').setLevel(logging.ERROR)
    worker = Worker(**json.loads(sys.argv[1]))
    answers = threading.Lock()
    _say(answers, {'id': 0, 'result': None})
    for line in sys.stdin:
        command = json.loads(line)
        threading.Thread(target=_run, args=(worker, command, answers), daemon=True).start()
    os._exit(0)  # the parent is gone


def _run(worker: Worker, command: dict[str, Any], answers: threading.Lock) -> None:
    number = command.pop('id')
    work = getattr(worker, command.pop('do'))
    try:
        answer = {'result': work(**command)}
    except Exception as exc:  # noqa: BLE001 - the exception is the answer
        is_known = isinstance(exc, exception.PrecacheError)
        if not is_known:
            traceback.print_exc()
        retry = getattr(exc, 'retry', model.Retry.NEVER)
        answer = {
            'error': type(exc).__name__,
            'message': str(exc),
            'is_known': is_known,
            'can_pass': retry is not model.Retry.NEVER,
        }
    _say(answers, {'id': number, **answer})


def _say(answers: threading.Lock, answer: dict[str, Any]) -> None:
    with answers:
        sys.stdout.write(json.dumps(answer) + '\n')
        sys.stdout.flush()


if __name__ == '__main__':
    main()
