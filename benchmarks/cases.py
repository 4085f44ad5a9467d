# SPDX-License-Identifier: Apache-2.0
"""The cases and their contestants, each in a process that has just started.

A round is fair to its contestants: no page is dirty, the page cache holds Glance's file alone,
so that Glance waits for no disk, and a small image was cached since, so that no contestant
imports a module or reads a program from the disk while it is timed. Each file is compared with
its source.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

from benchmarks import compute, images, observed
from benchmarks.images import GIB, MIB
from benchmarks.report import Results, Sample
from nova_precache.cache import layout
from tools.servers.nova import libvirt_compute

LOG = logging.getLogger(__name__)

_TOUCHES = 2000
_SMALL_BYTES = 4 * MIB


class WrongResult(Exception):
    """A file in the cache differs from its source."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the images."""

    image_bytes: int = GIB
    large_bytes: int = 4 * GIB
    holes_bytes: int = 10 * GIB
    holes_data_bytes: int = 200 * MIB


@dataclasses.dataclass(frozen=True)
class Uploaded:
    """An image in Glance, and the expected content of its base file."""

    id: str
    stored: pathlib.Path
    expected: pathlib.Path


Contestant = Callable[[], Sample]


class Bench:
    """Uploads the images and runs the contestants of a case in turn.

    :param directory: on the file system to measure; the caller empties it
    """

    def __init__(
        self, directory: pathlib.Path, glance: images.Glance, sizes: Sizes, *, drop_caches: bool
    ) -> None:
        self._directory = directory
        self._glance = glance
        self._sizes = sizes
        self._drop_caches = drop_caches
        self._small: dict[str, Uploaded] = {}
        self.data_bytes: dict[str, int] = {}

    def run(self, cases: list[str], rounds: int) -> Results:
        """Measure some of the cases.

        :raises WrongResult: a file differs from its source
        """
        small = self._full('small', _SMALL_BYTES, seed=0)
        self._small = {'raw': small, 'qcow2': self._qcow2_of(small.stored)}
        return {case.replace('-', ' '): CASES[case](self, rounds) for case in cases}

    def raw(self, rounds: int) -> dict[str, list[Sample]]:
        image = self._full('raw', self._sizes.image_bytes, seed=1)
        return self._take_turns(
            rounds,
            {
                'sha512': lambda: self._sha512(image),
                'receive': lambda: self._receive(image),
                'write': lambda: self._write(image),
                'the least': lambda: self._least(image),
                'Nova': lambda: self._nova(image, 'raw'),
                'ours': lambda: self._ours([image], 'raw'),
                'ours, not idle': lambda: self._ours([image], 'raw', idle_priority=False),
            },
            image,
        )

    def qcow2(self, rounds: int) -> dict[str, list[Sample]]:
        source = images.random_data(self._directory / 'source', self._sizes.image_bytes, seed=1)
        image = self._qcow2_of(source)
        return self._take_turns(
            rounds,
            {
                'Nova': lambda: self._nova(image, 'qcow2'),
                'ours': lambda: self._ours([image], 'qcow2'),
                'ours, not idle': lambda: self._ours([image], 'qcow2', idle_priority=False),
            },
            image,
        )

    def two(self, rounds: int) -> dict[str, list[Sample]]:
        both = [self._full(f'two-{seed}', self._sizes.image_bytes, seed=seed) for seed in (2, 3)]
        return self._take_turns(
            rounds,
            {
                'one image': lambda: self._ours(both[:1], 'raw'),
                'ours': lambda: self._ours(both, 'raw'),
            },
            *both,
        )

    def existing(self, rounds: int) -> dict[str, list[Sample]]:
        return {'ours': [self._existing() for _ in range(rounds)]}

    def large(self, rounds: int) -> dict[str, list[Sample]]:
        image = self._full('large', self._sizes.large_bytes, seed=4)
        return self._take_turns(1, {'ours': lambda: self._ours([image], 'raw')}, image)

    def holes(self, rounds: int) -> dict[str, list[Sample]]:
        size, data = self._sizes.holes_bytes, self._sizes.holes_data_bytes
        self.data_bytes['holes'] = data
        image = self._upload(images.holes(self._directory / 'holes', size, data, seed=5))
        return self._take_turns(1, {'ours': lambda: self._ours([image], 'raw')}, image)

    def _full(self, name: str, size_bytes: int, seed: int) -> Uploaded:
        return self._upload(images.random_data(self._directory / name, size_bytes, seed))

    def _upload(self, path: pathlib.Path, disk_format: str = 'raw') -> Uploaded:
        LOG.info('Uploading %s', path.name)
        image_id = self._glance.upload(path, disk_format)
        stored = self._glance.stored(image_id)
        if disk_format == 'raw':
            path.unlink()  # Glance's file is the same
            return Uploaded(image_id, stored, stored)
        return Uploaded(image_id, stored, path)

    def _qcow2_of(self, source: pathlib.Path) -> Uploaded:
        path = images.converted(source, self._directory / 'image.qcow2', '-O', 'qcow2')
        uploaded = self._upload(path, 'qcow2')
        path.unlink()
        return dataclasses.replace(uploaded, expected=source)

    def _take_turns(
        self, rounds: int, contestants: dict[str, Contestant], *used: Uploaded
    ) -> dict[str, list[Sample]]:
        """Run each once a round, starting with another one each time; then remove the images."""
        samples: dict[str, list[Sample]] = {who: [] for who in contestants}
        order = list(contestants)
        for number in range(rounds):
            for who in order[number % len(order) :] + order[: number % len(order)]:
                samples[who].append(contestants[who]())
                LOG.info('%d/%d %s: %s', number + 1, rounds, who, samples[who][-1])
        for image in used:
            image.stored.unlink()
            image.expected.unlink(missing_ok=True)
        return samples

    def _sha512(self, image: Uploaded) -> Sample:
        with self._compute('sha512') as ours:
            self._settle(image)
            seconds = ours.call('hash_file', path=str(image.stored))
        return Sample(wall_seconds=seconds)

    def _receive(self, image: Uploaded) -> Sample:
        with self._compute('receive') as ours:
            self._settle(image)
            with _clock(ours.pid) as taken:
                ours.call('receive', image_id=image.id)
        return taken[0]

    def _write(self, image: Uploaded) -> Sample:
        with self._compute('write') as ours:
            target = ours.instances_path / 'written'
            self._settle(image)
            with _clock(ours.pid) as taken:
                ours.call('write_file', path=str(image.stored), target=str(target))
        return taken[0]

    def _least(self, image: Uploaded) -> Sample:
        with self._compute('least') as ours:
            target = ours.instances_path / 'least'
            self._settle(image)
            with _clock(ours.pid) as taken:
                ours.call('least', image_id=image.id, target=str(target))
            _check(target, image)
        return taken[0]

    def _nova(self, image: Uploaded, disk_format: str) -> Sample:
        with self._scratch('nova') as directory:
            with libvirt_compute.LibvirtCompute(directory) as nova:
                instances = directory / 'instances'

                def cache(image_id: str) -> None:
                    options = {'DEFAULT': {'instances_path': str(instances)}}
                    nova.call('cache_image', options, self._glance.url, image_id=image_id)

                self._settle(image)
                cache(self._small[disk_format].id)
                with _clock(nova.pid) as taken:
                    cache(image.id)
            published = _base_file(instances, image)
            sample = dataclasses.replace(
                taken[0],
                page_cache_bytes=observed.cached_bytes(published),
                disk_bytes=observed.disk_bytes(published),
            )
            _check(published, image)
        return sample

    def _ours(
        self, wanted: list[Uploaded], disk_format: str, *, idle_priority: bool = True
    ) -> Sample:
        options = {'idle_priority': idle_priority, 'max_parallel_downloads': len(wanted)}
        with self._compute('ours', options) as ours:
            idle = observed.memory(ours.pid)
            self._settle(*wanted)
            ours.call('cache_image', image_id=self._small[disk_format].id)
            with _clock(ours.pid) as taken:
                _finish([ours.ask('cache_image', image_id=image.id) for image in wanted])
            published = [_base_file(ours.instances_path, image) for image in wanted]
            sample = dataclasses.replace(
                taken[0],
                memory_bytes=observed.memory(ours.pid).peak_bytes - idle.resident_bytes,
                page_cache_bytes=_cached_in(published[0].parent, self._small[disk_format]),
                disk_bytes=sum(map(observed.disk_bytes, published)),
            )
            for path, image in zip(published, wanted, strict=True):
                _check(path, image)
        return sample

    def _existing(self) -> Sample:
        image = self._small['raw']
        with self._compute('existing') as ours:
            ours.call('cache_image', image_id=image.id)
            before = observed.cpu_seconds(ours.pid)
            seconds = ours.call('touches', image_id=image.id, count=_TOUCHES)
            spent = observed.cpu_seconds(ours.pid) - before
        return Sample(wall_seconds=seconds, cpu_seconds=spent / _TOUCHES)

    def _settle(self, *wanted: Uploaded) -> None:
        if self._drop_caches:
            images.drop_page_cache()
        for image in wanted:
            images.warm(image.stored)

    @contextlib.contextmanager
    def _compute(
        self, name: str, options: dict[str, Any] | None = None
    ) -> Iterator[compute.Compute]:
        with self._scratch(name) as directory:
            given = {'image_cache': options or {}}
            log = directory / 'worker.log'
            with compute.Compute(directory / 'instances', self._glance.url, log, given) as started:
                yield started

    @contextlib.contextmanager
    def _scratch(self, name: str) -> Iterator[pathlib.Path]:
        directory = pathlib.Path(tempfile.mkdtemp(prefix=f'{name}-', dir=self._directory))
        try:
            yield directory
        finally:
            shutil.rmtree(directory)


@contextlib.contextmanager
def _clock(pid: int) -> Iterator[list[Sample]]:
    """Measure a process until the end of the block, which appends one sample to the list."""
    taken: list[Sample] = []
    spent = observed.cpu_seconds(pid)
    start = time.perf_counter()
    yield taken
    wall = time.perf_counter() - start
    taken.append(Sample(wall_seconds=wall, cpu_seconds=observed.cpu_seconds(pid) - spent))


def _finish(asked: 'list[futures.Future[str]]') -> None:
    outcomes = [each.result() for each in asked]
    if set(outcomes) != {'cached'}:
        raise WrongResult(f'the images are {outcomes}')


def _base_file(instances_path: pathlib.Path, image: Uploaded) -> pathlib.Path:
    return pathlib.Path(layout.CacheLayout(str(instances_path)).base_path(image.id))


def _cached_in(directory: pathlib.Path, but: Uploaded) -> int:
    """Return the bytes in the page cache of all files of a cache except one image."""
    name = layout.base_name(but.id)
    return sum(map(observed.cached_bytes, (p for p in directory.iterdir() if p.name != name)))


def _check(published: pathlib.Path, image: Uploaded) -> None:
    if not observed.same_content(published, image.expected):
        raise WrongResult(f'{published} is not equal to {image.expected}')


CASES: dict[str, Callable[[Bench, int], dict[str, list[Sample]]]] = {
    'raw': Bench.raw,
    'qcow2': Bench.qcow2,
    'two-at-once': Bench.two,
    'existing': Bench.existing,
    'large': Bench.large,
    'holes': Bench.holes,
}
