# SPDX-License-Identifier: Apache-2.0
"""A partial file is read while it is written, published, discarded or begun again."""

import contextlib
import functools
import os
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest

from nova_precache import exception, model
from nova_precache.cache import partials, readers, space
from nova_precache.image import fake
from tests import disk_images
from tests.unit.cache.conftest import SYNC_RULES, Cache, Refusal, cached_bytes
from tests.unit.cache.test_partials import (
    DATA,
    IMAGE,
    KIB,
    MIB,
    OTHER_DATA,
    image_of,
    in_pages,
    leave,
    note_writes,
    put,
)
from tools.waiting import TIMEOUT_SECONDS

# Long enough for another thread to do what it must not do.
MOMENT_SECONDS = 0.05


def read(reader: readers.Reader, count: int = 2 * MIB) -> bytes:
    """Read at once, into a buffer that holds other bytes."""
    buffer = bytearray(b'\xaa' * count)
    return bytes(buffer[: reader.read_into(memoryview(buffer), 0)])


def read_all(reader: readers.Reader, most_bytes: int = 100_000) -> bytes:
    """Wait for all bytes up to the end of the file."""
    found, buffer = b'', memoryview(bytearray(most_bytes))
    while count := reader.read_into(buffer, TIMEOUT_SECONDS):
        found += buffer[:count]
    return found


def assert_ended(reader: readers.Reader) -> None:
    with pytest.raises(readers.Ended):
        read(reader)


@contextlib.contextmanager
def running(work: Callable[[], object]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(TIMEOUT_SECONDS)
    assert not thread.is_alive()


def test_reader_sees_what_was_written(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial, partial.open_reader() as reader:
        with pytest.raises(TimeoutError):
            read(reader)
        put(partial, DATA[:100_001])
        assert read(reader, 70_000) == DATA[:70_000]
        assert read(reader) == DATA[70_000:100_001]
        with pytest.raises(TimeoutError):
            read(reader)


def test_kept_bytes_read_from_any_offset(cache: Cache) -> None:
    leave(cache, DATA[:300_000])
    with cache.partials.open(IMAGE) as partial, partial.open_reader(250_000) as reader:
        assert read(reader) == DATA[250_000:300_000]


def test_trailing_hole_reads_as_zeros(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial, partial.open_reader() as reader:
        put(partial, DATA[: 64 * KIB] + bytes(96 * KIB))
        assert os.path.getsize(partial.path) == 64 * KIB
        assert read(reader) == DATA[: 64 * KIB]
        assert read(reader) == bytes(96 * KIB)
        with pytest.raises(TimeoutError):
            read(reader)


def test_reader_waits_for_more(cache: Cache) -> None:
    found: list[bytes] = []
    with (
        cache.partials.open(IMAGE) as partial,
        partial.open_reader() as reader,
        running(lambda: found.append(read_all(reader))),
    ):
        put(partial, DATA)
        partial.finish(len(DATA))
    assert found == [DATA]


def test_reader_closed_again_closes_no_other_file(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        reader = partial.open_reader()
        reader.close()
        with open(os.devnull) as other:  # it gets the descriptor of the reader
            reader.close()
            os.fstat(other.fileno())


def test_file_published_meanwhile_has_no_new_reader(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial:
        os.rename(partial.path, f'{partial.path}.published')
        with pytest.raises(readers.Ended):
            partial.open_reader()
        os.rename(f'{partial.path}.published', partial.path)


def test_finished_file_ends_after_last_byte(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial, partial.open_reader(len(DATA) - 10) as reader:
        put(partial, DATA)
        partial.finish(len(DATA))
        assert read(reader) == DATA[-10:]
        assert read(reader) == b''


def test_page_cache_bypassed_without_readers_only(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = note_writes(monkeypatch)
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA[: 128 * KIB])
        with partial.open_reader() as reader, partial.open_reader():
            put(partial, DATA[128 * KIB : 256 * KIB], 128 * KIB)
            assert partial.has_readers
            assert read(reader) == DATA[: 256 * KIB]
        put(partial, DATA[256 * KIB :], 256 * KIB)
        assert not partial.has_readers
        assert pathlib.Path(partial.path).read_bytes() == DATA
    assert [is_direct for _, is_direct in written] == [True] * 2 + [False] * 2 + [True] * 12


def test_reader_opened_between_writes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its first pages could be older than the bytes that bypass the page cache."""
    opened = threading.Event()
    write = os.pwrite
    threads = contextlib.ExitStack()

    def open_reader() -> None:
        with partial.open_reader():
            opened.set()

    def open_meanwhile(descriptor: int, data: memoryview, at: int) -> int:
        monkeypatch.setattr(os, 'pwrite', write)
        threads.enter_context(running(open_reader))
        assert not opened.wait(MOMENT_SECONDS), 'opened during a write'
        return write(descriptor, data, at)

    with cache.partials.open(IMAGE) as partial, threads:
        monkeypatch.setattr(os, 'pwrite', open_meanwhile)
        put(partial, DATA[: 64 * KIB])
        assert opened.wait(TIMEOUT_SECONDS)


def test_restart_takes_new_file(cache: Cache) -> None:
    with cache.partials.open(IMAGE) as partial, partial.open_reader() as reader:
        put(partial, DATA[:1000])
        old = os.stat(partial.path)
        partial.restart()
        put(partial, OTHER_DATA[:2000])
        assert not os.path.samestat(os.stat(partial.path), old)
        assert_ended(reader)
        assert not partial.has_readers
        with partial.open_reader() as next_reader:
            assert read(next_reader) == OTHER_DATA[:2000]


def test_restart_waits_for_read_in_progress(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    restarted = threading.Event()
    preadv = os.preadv
    threads = contextlib.ExitStack()

    def restart() -> None:
        partial.restart()
        restarted.set()

    def restart_meanwhile(*arguments: object) -> int:
        threads.enter_context(running(restart))
        assert not restarted.wait(MOMENT_SECONDS), 'the file was replaced during a read'
        return preadv(*arguments)  # type: ignore[arg-type]

    with cache.partials.open(IMAGE) as partial, threads, partial.open_reader() as reader:
        put(partial, DATA[:1000])
        monkeypatch.setattr(os, 'preadv', restart_meanwhile)
        assert read(reader) == DATA[:1000]
        assert restarted.wait(TIMEOUT_SECONDS)
        assert_ended(reader)


def test_waiting_reader_ends_with_attempt(cache: Cache) -> None:
    ended = threading.Event()

    def wait() -> None:
        with pytest.raises(readers.Ended):
            read_all(reader)
        ended.set()

    with contextlib.ExitStack() as stack:
        with cache.partials.open(IMAGE) as partial:
            reader = stack.enter_context(partial.open_reader())
            stack.enter_context(running(wait))
            put(partial, DATA[:1000])
            partial.keep()
        assert ended.wait(TIMEOUT_SECONDS)
        with pytest.raises(readers.Ended):
            partial.open_reader()


def test_readers_of_cut_bytes_end(cache: Cache) -> None:
    """The next attempt cuts off what was not synchronised."""
    with contextlib.ExitStack() as stack:
        with cache.partials.open(IMAGE) as partial:
            put(partial, DATA[:1000])
            partial.keep()
            put(partial, DATA[1000:2000], 1000)
            reader = stack.enter_context(partial.open_reader())
        with cache.partials.open(IMAGE) as partial:
            assert partial.kept_bytes == 1000
            assert_ended(reader)


@pytest.mark.parametrize('disk_format', ['raw', 'qcow2'])
def test_publishing_disturbs_no_reader(
    cache: Cache,
    images: fake.FakeImageService,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    qemu_img: str,
    disk_format: str,
) -> None:
    """Also the file of a converted image is read on, although it is removed."""
    data = disk_images.converted(tmp_path / 'image', disk_format).read_bytes()
    image = images.add(data, disk_format=disk_format)
    opened = note_partials(cache, monkeypatch)
    with contextlib.ExitStack() as stack:
        found: list[readers.Reader] = []

        def open_once(progress: model.Progress) -> None:
            if not found:
                found.append(stack.enter_context(opened[0].open_reader()))

        assert not cache.filler.fill(images, image.id, open_once).existing
        assert cache.suffixes() == []
        assert read_all(found[0]) == data
        with pytest.raises(readers.Ended):
            opened[0].open_reader()


def test_failed_publishing_ends_readers(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch, qemu_img: str
) -> None:
    image = images.add(DATA)
    opened = note_partials(cache, monkeypatch)
    with contextlib.ExitStack() as stack:
        found: list[readers.Reader] = []

        def open_and_spoil(progress: model.Progress) -> None:
            if progress.status == model.TaskStatus.VERIFYING:
                found.append(stack.enter_context(opened[0].open_reader()))
                images.delete(image.id)

        with pytest.raises(exception.ImageGone):
            cache.filler.fill(images, image.id, open_and_spoil)
        assert cache.names() == []
        assert_ended(found[0])


def note_partials(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[partials.Partial]:
    """Record the partial files that are opened."""
    opened: list[partials.Partial] = []
    really_open = cache.filler._partials.open

    @contextlib.contextmanager
    def note(*arguments: object, **options: object) -> Iterator[partials.Partial]:
        with really_open(*arguments, **options) as partial:  # type: ignore[arg-type]
            opened.append(partial)
            yield partial

    monkeypatch.setattr(cache.filler._partials, 'open', note)
    return opened


def test_unremovable_file_ends_its_readers(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be cut by the next attempt."""
    refusal = Refusal(monkeypatch, 'unlink', 30)
    with contextlib.ExitStack() as stack:
        with cache.partials.open(IMAGE) as partial:
            put(partial, DATA)
            reader = stack.enter_context(partial.open_reader())
            refusal.is_on = True
            partial.release_readers()
            refusal.is_on = False
        assert_ended(reader)


def test_old_file_counts_until_closed(cache: Cache) -> None:
    checks = []
    with cache.partials.open(IMAGE) as partial:
        partial.check_space = lambda: checks.append(partial.passed_bytes)
        put(partial, DATA)
        partial.restart()
        assert checks == [], 'nothing keeps the old file'
        put(partial, DATA)
        with partial.open_reader():
            partial.restart()
        assert checks == [0]
        partial.restart()
        assert checks == [0]


def test_restart_beside_readers_needs_space(
    cache: Cache, images: fake.FakeImageService, monkeypatch: pytest.MonkeyPatch, qemu_img: str
) -> None:
    """The disk has room for the image once, and a reader keeps the first half."""
    data = DATA + OTHER_DATA
    image = images.add(data)
    images.faults.cuts, images.faults.whole = [MIB], 1
    opened = note_partials(cache, monkeypatch)
    keeping: list[readers.Reader] = []

    def free_bytes(cache_space: space.CacheSpace) -> int:
        written = sum(each.passed_bytes for each in opened)
        return len(data) - written - (MIB if keeping and not written else 0)

    monkeypatch.setattr(space.CacheSpace, 'free_bytes', free_bytes)
    with contextlib.ExitStack() as stack:

        def open_once(progress: model.Progress) -> None:
            if progress.bytes_done == MIB and not keeping:
                keeping.append(stack.enter_context(opened[0].open_reader()))

        with pytest.raises(exception.NotEnoughSpace, match=r'needs 2\.0 MiB, 1\.0 MiB free'):
            cache.filler.fill(images, image.id, open_once)
        assert cache.names() == []


def test_no_descriptor_stays_open(cache: Cache) -> None:
    before = len(os.listdir('/proc/self/fd'))
    with cache.partials.open(IMAGE) as partial:
        put(partial, DATA)
        with partial.open_reader():
            partial.restart()
        with partial.open_reader():
            partial.finish(0)
    assert len(os.listdir('/proc/self/fd')) <= before


WINDOW_BYTES = 128 * KIB
SYNCED_BYTES = 256 * KIB


def windowed(cache: Cache) -> partials.Partials:
    rules = partials.SyncRules(
        write_back_bytes=SYNC_RULES.write_back_bytes,
        sync_bytes=SYNCED_BYTES,
        sync_seconds=3600,
        window_bytes=WINDOW_BYTES,
    )
    return partials.Partials(cache.paths, rules)


@pytest.mark.usefixtures('drops_pages')
def test_last_pages_stay_cached_for_readers(cache: Cache) -> None:
    with windowed(cache).open(IMAGE) as partial:
        with partial.open_reader() as reader:
            for start in range(0, MIB, 64 * KIB):
                put(partial, DATA[start : start + 64 * KIB], start)
                assert read(reader) == DATA[start : start + 64 * KIB]
            partial.keep()
            assert WINDOW_BYTES <= cached_bytes(partial.path) <= WINDOW_BYTES + SYNCED_BYTES
        put(partial, OTHER_DATA[: 256 * KIB], MIB)
        partial.keep()
        assert cached_bytes(partial.path) == 0, 'it has no reader left'


@pytest.mark.usefixtures('drops_pages')
def test_late_reader_leaves_no_pages(cache: Cache) -> None:
    """An image of many GiB that is read from its start must not fill the memory."""
    leave(cache)
    with windowed(cache).open(IMAGE) as partial, partial.open_reader() as reader:
        while True:
            with contextlib.suppress(TimeoutError):
                read(reader, 10_001)
                continue
            break
        assert cached_bytes(partial.path) <= MIB // 2


@pytest.mark.usefixtures('drops_pages')
def test_pages_to_be_converted_stay(cache: Cache) -> None:
    with windowed(cache).open(IMAGE, keep_pages=True) as partial, partial.open_reader() as reader:
        put(partial, DATA)
        partial.keep()
        assert read(reader) == DATA
        assert cached_bytes(partial.path) == MIB


def test_readers_follow_writer_in_other_threads(cache: Cache) -> None:
    """One joins before the first byte, and one at each quarter."""
    data = b''.join((DATA, bytes(300_000), OTHER_DATA, bytes(5000), DATA[:77_777], bytes(99_999)))
    image = image_of(data)
    found: list[tuple[int, bytes]] = []

    def follow(reader: readers.Reader, offset: int) -> None:
        with reader:
            found.append((offset, read_all(reader, 30_000 + offset // 7)))

    offsets = [0, len(data) // 4, len(data) // 2]
    with contextlib.ExitStack() as threads, cache.partials.open(image) as partial:
        joins = list(offsets)
        for start in range(0, len(data), 50_000):
            if joins and start >= joins[0]:
                reader = partial.open_reader(joins[0])
                threads.enter_context(running(functools.partial(follow, reader, joins.pop(0))))
            piece = data[start : start + 50_000]
            partial.write(in_pages(piece), len(piece), start)
        partial.finish(len(data))
        partial.release_readers()
    assert sorted(found) == [(offset, data[offset:]) for offset in offsets]
