# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a cache, it holds only whole images and resumable partial downloads.

Hypothesis searches for a sequence of cuts, kills, power losses, full disks and changed
images that breaks this. Each run tries the same sequences; with
``NOVA_PRECACHE_EXAMPLES`` set to a number, it tries that many new ones.
"""

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import random
import shutil
import tempfile
import threading
from concurrent import futures

import hypothesis
import pytest
from hypothesis import stateful, strategies as st
from oslo_utils import uuidutils

from nova_precache import exception, model
from nova_precache.cache import layout, locks
from nova_precache.download import pipeline
from nova_precache.image import fake
from tests import disk_images
from tests.functional import faulty_proxy, kill_harness
from tests.functional.faulty_proxy import Kind, Trouble
from tests.functional.kill_harness import When
from tests.service import wait_until

EXAMPLES = os.environ.get('NOVA_PRECACHE_EXAMPLES')
BUFFER_BYTES = pipeline.BUFFER_BYTES
NOT_NOW = 'not wanted now'
DAY_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Made:
    """An image as the service has it; ``raw`` is None if it must never be cached."""

    data: bytes
    disk_format: str
    raw: bytes | None


def _plain(size_bytes: int) -> Made:
    data = disk_images.content(max(512, size_bytes), seed=size_bytes)[:size_bytes]
    return Made(data, 'raw', data)


def _with_holes() -> Made:
    piece = 220_000  # so that the last piece is smaller than what is recorded at a time
    data = b''.join(disk_images.content(piece, seed) + bytes(piece) for seed in range(5)) + b'end'
    return Made(data, 'raw', data)


def _qcow2(size_bytes: int) -> Made:
    with tempfile.TemporaryDirectory() as directory:
        raw = disk_images.content(size_bytes, seed=size_bytes)
        image = disk_images.qcow2_of(pathlib.Path(directory, 'image'), raw)
        return Made(image.read_bytes(), 'qcow2', raw)


def _unsafe() -> Made:
    with tempfile.TemporaryDirectory() as directory:
        backing = disk_images.raw(pathlib.Path(directory, 'backing'))
        image = disk_images.qcow2_with_backing_file(pathlib.Path(directory, 'image'), backing)
        return Made(image.read_bytes(), 'qcow2', None)


MAKERS = {
    'empty': lambda: Made(b'', 'raw', None),
    'one byte': functools.partial(_plain, 1),
    'no sector': functools.partial(_plain, 511),
    'one sector': functools.partial(_plain, 512),
    'less than a buffer': functools.partial(_plain, BUFFER_BYTES - 1),
    'a buffer': functools.partial(_plain, BUFFER_BYTES),
    'more than a buffer': functools.partial(_plain, BUFFER_BYTES + 1),
    'some buffers': functools.partial(_plain, 3 * BUFFER_BYTES + 7),
    'with holes': _with_holes,
    'small qcow2': functools.partial(_qcow2, 64 * 1024),
    'large qcow2': functools.partial(_qcow2, 2 * BUFFER_BYTES),
    'unsafe': _unsafe,
}
MOST_BYTES = 3 * BUFFER_BYTES + 8
made = functools.cache(lambda kind: MAKERS[kind]())

kinds = st.sampled_from(sorted(MAKERS))
slots = st.integers(0, 1)
at_bytes = st.one_of(
    st.integers(0, 2000),
    st.sampled_from([BUFFER_BYTES - 1, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES]),
    st.integers(0, MOST_BYTES),
)
_befalling = [Kind.CUT, Kind.SPOIL, Kind.REFUSED, Kind.SILENT, Kind.WHOLE, Kind.ELSEWHERE]
troubles = st.lists(
    st.builds(Trouble, st.sampled_from([*_befalling, Kind.SHORT]), at_bytes), max_size=6
)
deaths = st.one_of(
    st.builds(
        kill_harness.Death,
        st.sampled_from([When.BEFORE, When.WITHIN, When.AFTER]),
        st.integers(1, 40),
    ),
    st.builds(kill_harness.Death, st.just(When.LINE), st.integers(1, 1500)),
)
stops = st.sampled_from(
    [
        exception.Cancelled('not wanted'),
        exception.Cancelled(NOT_NOW, keep_partial=True),
        exception.DeadlinePassed('too late'),
        exception.Paused('later'),
        exception.ShuttingDown('the compute stops'),
    ]
)
faults = st.builds(
    kill_harness.Fault,
    st.sampled_from([errno.ENOSPC, errno.EIO, errno.EROFS]),
    st.integers(1, 40),
    st.booleans(),
)

_KEEP = ('DownloadInterrupted', 'ImageUnauthorized', 'DeadlinePassed', 'Paused', 'ShuttingDown')
_GOOD = ('cached', 'existing')


class CacheMachine(stateful.RuleBasedStateMachine):
    """One cache, two images, and everything that happens to them.

    :ivar spoiled: images whose partial files may hold wrong bytes, which only the end can show
    """

    @stateful.initialize(first=kinds, second=kinds, force_raw=st.booleans())
    def begin(self, first: str, second: str, force_raw: bool) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='cache-'))
        self.options = {'force_raw_images': force_raw}
        self.images = fake.FakeImageService()
        self.ids = [uuidutils.generate_uuid(), uuidutils.generate_uuid()]
        self.made: dict[str, Made] = {}
        self.allowed: dict[str, list[bytes]] = {}
        self.spoiled: set[str] = set()
        self.is_swept = True
        self.threads = set(threading.enumerate())
        for image_id, kind in zip(self.ids, (first, second), strict=True):
            self._put(image_id, made(kind))
        self.start()

    # Rules

    @stateful.rule(slot=slots, befalling=troubles, is_last=st.booleans())
    def cache(self, slot: int, befalling: list[Trouble], is_last: bool) -> None:
        self._forget(slot)
        link = faulty_proxy.RoughLink(self.images, self._within(slot, befalling))
        control = kill_harness.QuickControl(is_last_attempt=is_last)
        self._attempt(slot, link, control=control, is_clean=not befalling)

    @stateful.rule(slot=slots, error=stops, at_byte=at_bytes)
    def stop(self, slot: int, error: exception.CacheError, at_byte: int) -> None:
        self._forget(slot)
        control = kill_harness.QuickControl()
        stop = self._within(slot, [Trouble(Kind.STOP, at_byte)])
        link = faulty_proxy.RoughLink(self.images, stop, struck=lambda: control.stop(error))
        status = self._attempt(slot, link, control=control)
        assert status in {type(error).__name__, *_GOOD, 'UnsafeImage', 'ImageGone', 'ImageMismatch'}

    @stateful.rule(slot=slots, error=stops, step=st.sampled_from(['verifying', 'converting']))
    def stop_after_the_download(self, slot: int, error: exception.CacheError, step: str) -> None:
        self._forget(slot)
        control = kill_harness.QuickControl()

        def progress(seen: model.Progress) -> None:
            if seen.status == step:
                control.stop(error)

        self._attempt(slot, faulty_proxy.RoughLink(self.images), control=control, progress=progress)

    @stateful.rule(slot=slots, fault=faults)
    def have_the_disk_fail(self, slot: int, fault: kill_harness.Fault) -> None:
        self._forget(slot)
        with kill_harness.Disk(str(self.directory), fault=fault).watched():
            self._attempt(slot, faulty_proxy.RoughLink(self.images), breaks=True)
        self.is_swept = False  # the next start removes what cannot be removed now

    @stateful.rule(
        slot=slots,
        death=deaths,
        befalling=troubles,
        init_host=st.booleans(),
        power=st.none() | st.integers(0, 999).map(random.Random),
    )
    def kill(
        self,
        slot: int,
        death: kill_harness.Death,
        befalling: list[Trouble],
        init_host: bool,
        power: random.Random | None,
    ) -> None:
        image_id = self.ids[slot]
        self._forget(slot)
        synced = self._synced()
        noted = kill_harness.noted_bytes(self.base_directory, self.images.show(image_id))
        attempt = kill_harness.Attempt(
            str(self.directory),
            self.images.show(image_id),
            self.made[image_id].data,
            tuple(self._within(slot, befalling)),
            death,
            tuple(self.options.items()),
            init_host,
            str(synced),
        )
        ended = kill_harness.run(attempt)
        hypothesis.note(f'{ended}')
        assert ended.opens[:1] in ([], [noted])
        if ended.status != 'died':
            assert befalling or ended.status in self._right_outcomes(image_id), ended
        self._note_spoiled(image_id, befalling)
        if ended.status != 'died':
            return
        self.is_swept = False
        if power is not None:
            kill_harness.lose_power(self.base_directory, synced, power)

    @stateful.rule(slot=slots, befalling=troubles)
    def ask_from_many_sides(self, slot: int, befalling: list[Trouble]) -> None:
        """Cache an image from two computes that share the directory, twice from one of them."""
        other = kill_harness.make_driver(str(self.directory), **self.options)
        befalling = self._within(slot, befalling)
        links = [faulty_proxy.RoughLink(self.images, each) for each in (befalling, [], [])]
        drivers = (self.driver, other, other)
        ask = functools.partial(kill_harness.try_to_cache, image_id=self.ids[slot])
        with futures.ThreadPoolExecutor(len(links)) as pool:
            told = [status for status, _ in pool.map(ask, drivers, links)]
        self._note_spoiled(self.ids[slot], befalling)
        hypothesis.note(f'{told}; opens {[link.opens for link in links]}')
        if not self.spoiled and self.made[self.ids[slot]].raw is not None:
            assert set(told[1:]) <= set(_GOOD), told
            assert told.count('cached') <= 1, told
        if set(told) & set(_GOOD) and self.is_swept:
            assert self._partials(self.ids[slot]) == []

    @stateful.rule(slot=slots, kind=kinds)
    def change(self, slot: int, kind: str) -> None:
        self._put(self.ids[slot], made(kind))

    @stateful.rule()
    def start(self) -> None:
        self.driver = kill_harness.make_driver(str(self.directory), **self.options)
        self.driver.init_host()
        self.is_swept = True

    @stateful.rule()
    def expire(self) -> None:
        """Age every file past its expiry."""
        old = os.stat(self.directory).st_mtime - 30 * DAY_SECONDS
        for path in self.base_directory.iterdir():
            os.utime(path, (old, old))
        self.driver.manage_image_cache()
        if self.is_swept:
            assert _names(self.base_directory) == []
        self.spoiled.clear()

    # Invariants

    @stateful.invariant()
    def every_image_is_whole(self) -> None:
        for name in filter(layout.is_base_name, _names(self.base_directory)):
            content = (self.base_directory / name).read_bytes()
            assert content in self.allowed.get(name, []), f'{name} has {len(content)} wrong bytes'

    @stateful.invariant()
    def nothing_is_held(self) -> None:
        wait_until(lambda: set(threading.enumerate()) <= self.threads, 'all threads ended')
        wait_until(lambda: not self._open_files(), 'all files are closed')
        image_locks = locks.ImageLocks(str(self.directory / 'locks'))
        for image_id in self.ids:
            with image_locks.try_hold(layout.base_name(image_id)) as held:
                assert held, 'a lock is held'

    def teardown(self) -> None:
        if not hasattr(self, 'driver'):
            return
        try:
            self.start()
            self._end_well()
        finally:
            shutil.rmtree(self.directory)

    def _end_well(self) -> None:
        """Check that without faults every image is cached and nothing else remains."""
        for slot, image_id in enumerate(self.ids):
            was_spoiled = image_id in self.spoiled
            status = self._attempt(slot, faulty_proxy.RoughLink(self.images), is_clean=True)
            if was_spoiled and status == 'ImageMismatch':
                self._attempt(slot, faulty_proxy.RoughLink(self.images), is_clean=True)
            self.every_image_is_whole()
            self._boot(slot)
        assert all(map(layout.is_base_name, _names(self.base_directory)))

    def _boot(self, slot: int) -> None:
        """Check that a cached image boots without the image service."""
        path = self.base_directory / layout.base_name(self.ids[slot])
        if path.exists():
            link = faulty_proxy.RoughLink(self.images)
            disk = self.driver.create_root_disk(link, self.ids[slot], f'machine-{slot}')
            assert (disk.backing_file, link.opens) == (str(path), [])

    # Helpers

    @property
    def base_directory(self) -> pathlib.Path:
        return self.directory / '_base'

    def _put(self, image_id: str, image: Made) -> None:
        if self.made.get(image_id) != image:
            self.spoiled.discard(image_id)  # a partial download of another version is never resumed
        self.made[image_id] = image
        self.images.add(image.data, id=image_id, disk_format=image.disk_format)
        if image.raw is not None:
            is_kept = image.disk_format == 'raw' or not self.options['force_raw_images']
            form = image.data if is_kept else image.raw
            self.allowed.setdefault(layout.base_name(image_id), []).append(form)

    def _attempt(
        self,
        slot: int,
        link: faulty_proxy.RoughLink,
        *,
        control: kill_harness.QuickControl | None = None,
        progress: model.ProgressCallback = lambda progress: None,
        is_clean: bool = False,
        breaks: bool = False,
    ) -> str:
        image_id = self.ids[slot]
        befalling = link.troubles
        image = self.images.show(image_id)
        noted = kill_harness.noted_bytes(self.base_directory, image)
        status, reason = kill_harness.try_to_cache(self.driver, link, image_id, control, progress)
        hypothesis.note(f'{status}: {reason}; opens {link.opens}, served {link.served_bytes}')
        if is_clean:
            assert status in self._right_outcomes(image_id), (status, reason)
        may_keep = control is None or not control.is_last_attempt
        keeps = may_keep and (status in _KEEP or reason == NOT_NOW)
        if keeps:
            self._note_spoiled(image_id, befalling)
        else:
            self.spoiled.discard(image_id)
        if link.opens and not breaks:
            assert link.opens[0] == noted, 'it does not go on where it was'
        if keeps and not breaks:
            came = link.position if link.opens else noted
            assert kill_harness.noted_bytes(self.base_directory, image) == came, 'not all is kept'
        if status == 'cached':
            name = layout.base_name(image_id)
            content = (self.base_directory / name).read_bytes()
            assert content == self.allowed[name][-1], 'cached, but not what it is now'
        if self.is_swept and not keeps and not breaks:
            assert self._partials(image_id) == [], status
        return status

    def _right_outcomes(self, image_id: str) -> set[str]:
        image = self.made[image_id]
        right = set(_GOOD) if image.raw is not None else {'existing'}
        if image.raw is None:
            right.add('UnsafeImage' if image.data else 'ImageGone')
        return right | ({'ImageMismatch', 'UnsafeImage'} if image_id in self.spoiled else set())

    def _note_spoiled(self, image_id: str, befalling: list[Trouble]) -> None:
        if any(each.kind is Kind.SPOIL for each in befalling):
            self.spoiled.add(image_id)

    def _partials(self, image_id: str) -> list[str]:
        name = layout.base_name(image_id)
        return [
            each for each in _names(self.base_directory) if each.startswith(name) and each != name
        ]

    def _open_files(self) -> list[str]:
        """List the files of the cache, and the watches, that this process has open."""
        found = []
        for descriptor in os.listdir('/proc/self/fd'):
            with contextlib.suppress(FileNotFoundError):
                found.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        return [each for each in found if str(self.directory) in each or 'inotify' in each]

    def _within(self, slot: int, befalling: list[Trouble]) -> list[Trouble]:
        """Move each fault to a byte within the image."""
        most = len(self.made[self.ids[slot]].data) + 1
        return [dataclasses.replace(each, at_byte=each.at_byte % most) for each in befalling]

    def _forget(self, slot: int) -> None:
        """Remove an image, or it would be downloaded only once."""
        (self.base_directory / layout.base_name(self.ids[slot])).unlink(missing_ok=True)

    def _synced(self) -> pathlib.Path:
        """Return a directory that holds the content now on disk."""
        directory = self.directory / 'synced'
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.base_directory, directory)
        return directory


def _names(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture(autouse=True)
def _small_steps(qemu_img: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record progress often, as for large images; conversions are real ones."""
    kill_harness.note_often(monkeypatch.setattr)


class TestCache(CacheMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = hypothesis.settings(
        max_examples=int(EXAMPLES or 60),
        stateful_step_count=10,
        derandomize=EXAMPLES is None,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@pytest.mark.parametrize(
    ('kind', 'power'), [('with holes', random.Random(1)), ('small qcow2', None)]
)
def test_process_may_die_at_any_operation(
    tmp_path: pathlib.Path, kind: str, power: random.Random | None
) -> None:
    """The process dies during each; recorded bytes are not fetched again."""
    image = made(kind)
    nth = 0
    while True:
        nth += 1
        cache = _Cache(tmp_path / str(nth), image)
        ended = cache.die(kill_harness.Death(When.WITHIN, nth), power)
        if ended.status != 'died':
            break
        cache.assert_recovers()
    assert ended.status == 'cached', ended.reason
    assert nth > 10, 'it did not die at all'


@pytest.mark.parametrize('when', [When.BEFORE, When.AFTER])
def test_process_may_die_during_removal(tmp_path: pathlib.Path, when: When) -> None:
    """The image is then whole or removed; the next start removes leftovers."""
    image = made('some buffers')
    nth, outcomes = 0, set()
    while True:
        nth += 1
        cache = _Cache(tmp_path / str(nth), image)
        assert kill_harness.run(cache.attempt()).status == 'cached'
        death = kill_harness.Death(when, nth)
        ended = kill_harness.run(dataclasses.replace(cache.attempt(), removes=True, death=death))
        if ended.status != 'died':
            break
        cache.start()
        names = _names(cache.base_directory)
        assert names in ([], [layout.base_name(cache.image.id)])
        outcomes.add(len(names))
        cache.assert_recovers()
    assert ended.status == 'removed', ended.reason
    assert outcomes == {0, 1}, 'it died only before or only after the removal'


@pytest.mark.parametrize('kind', ['some buffers', 'small qcow2'])
def test_removed_lock_file_lets_processes_coexist(tmp_path: pathlib.Path, kind: str) -> None:
    """Nova's cache manager does that; the second process starts while the first is at work."""
    cache = _Cache(tmp_path, made(kind))
    others: list[kill_harness.Ended] = []

    def come() -> None:
        for lock in (tmp_path / 'locks').iterdir():
            lock.unlink()
        others.append(kill_harness.run(cache.attempt()))

    link = faulty_proxy.RoughLink(cache.images, [Trouble(Kind.CALL, 20_000)], struck=come)
    status, _ = kill_harness.try_to_cache(cache.driver, link, cache.image.id)

    assert [other.status for other in others] == ['cached']
    assert status == 'cached'
    cache.assert_recovers()


def test_bytes_beyond_last_note_ignored(
    tmp_path: pathlib.Path,
) -> None:
    cache = _Cache(tmp_path, made('with holes'))
    noted_bytes = cache.interrupt(BUFFER_BYTES // 2)
    [unfinished] = cache.base_directory.glob('*.part')
    with unfinished.open('r+b') as file:
        file.seek(noted_bytes)
        file.write(b'\xaa' * (len(cache.made.data) - noted_bytes))

    cache.assert_recovers()


def test_replaced_image_fetched_from_zero(
    tmp_path: pathlib.Path,
) -> None:
    cache = _Cache(tmp_path, made('with holes'))
    cache.interrupt(BUFFER_BYTES)
    data = bytes(reversed(cache.made.data))
    cache.made = Made(data, 'raw', data)
    cache.image = cache.images.add(data, id=cache.image.id)

    cache.assert_recovers()


class _Cache:
    """A cache whose process dies."""

    def __init__(self, directory: pathlib.Path, image: Made) -> None:
        self.directory = directory
        self.base_directory = directory / '_base'
        self.images = fake.FakeImageService()
        self.image = self.images.add(image.data, disk_format=image.disk_format)
        self.made = image
        self.start()

    def start(self) -> None:
        self.driver = kill_harness.make_driver(str(self.directory))
        self.driver.init_host()

    def attempt(self) -> kill_harness.Attempt:
        return kill_harness.Attempt(str(self.directory), self.image, self.made.data)

    def interrupt(self, at_byte: int) -> int:
        """Pause a download at a byte, to be resumed later; return the byte."""
        control = kill_harness.QuickControl()
        pause = functools.partial(control.stop, exception.Paused('later'))
        link = faulty_proxy.RoughLink(self.images, [Trouble(Kind.STOP, at_byte)], struck=pause)
        assert kill_harness.try_to_cache(self.driver, link, self.image.id, control)[0] == 'Paused'
        assert kill_harness.noted_bytes(self.base_directory, self.image) == at_byte
        return at_byte

    def die(self, death: kill_harness.Death, power: random.Random | None) -> kill_harness.Ended:
        synced = self.directory / 'synced'
        synced.mkdir()
        ended = kill_harness.run(
            dataclasses.replace(self.attempt(), death=death, synced=str(synced))
        )
        if power is not None and ended.status == 'died':
            kill_harness.lose_power(self.base_directory, synced, power)
        return ended

    def assert_recovers(self) -> None:
        """Check that the next process cleans up, resumes from the journal and caches the image."""
        name = layout.base_name(self.image.id)
        path = self.base_directory / name
        assert not path.exists() or path.read_bytes() == self.made.raw
        self.start()
        noted_bytes = kill_harness.noted_bytes(self.base_directory, self.image)
        link = faulty_proxy.RoughLink(self.images)
        status, _ = kill_harness.try_to_cache(self.driver, link, self.image.id)
        assert status in _GOOD
        is_whole = status == 'existing' or noted_bytes == self.image.size
        assert link.opens == ([] if is_whole else [noted_bytes])
        assert _names(self.base_directory) == [name]
        assert path.read_bytes() == self.made.raw
