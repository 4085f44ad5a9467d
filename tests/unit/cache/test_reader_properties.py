# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a partial file, a reader gets a true prefix of its bytes, or ends.

Hypothesis searches for a sequence of writes, holes, cut-backs, start-overs, publications and
removals after which a reader gets a wrong byte. After each start-over and each cut, other
bytes follow than before, so that a byte of the wrong version is noticed.
"""

import contextlib
import dataclasses
import enum
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import stateful, strategies as st

from nova_precache.cache import layout, partials, readers
from tests.unit.cache.conftest import Cache
from tests.unit.cache.test_partials import KIB, image_of, in_pages

BLOCK_BYTES = partials.BLOCK_BYTES
SIZE_BYTES = 600_001
_RUN_BYTES = 5 * BLOCK_BYTES  # of data or zeros
IMAGE = image_of(size=SIZE_BYTES)
RULES = partials.SyncRules(
    write_back_bytes=64 * KIB, sync_bytes=128 * KIB, sync_seconds=3600, window_bytes=96 * KIB
)

amounts = st.one_of(
    st.integers(1, 10_000),
    st.sampled_from([BLOCK_BYTES, 64 * KIB, 128 * KIB]),
    st.integers(1, 250_000),
)
numbers = st.integers(0, 99)


@dataclasses.dataclass
class Following:
    """A reader, and what it must read.

    :ivar data: what was written until it ended, or so far
    """

    reader: readers.Reader
    at: int
    data: bytearray
    is_ended: bool = False
    is_complete: bool = False


class Event(enum.StrEnum):
    """What befalls a partial file with bytes."""

    START_OVER = 'its source starts over'
    LEAVE = 'the next attempt cuts it back'
    KEEP = 'the next attempt has all of its bytes'
    DISCARD = 'it is removed'
    REFUSE = 'it is complete, but has the wrong hash'
    PUBLISH = 'it is published'
    CONVERT = 'the file that was made from it is published'


class ReaderMachine(stateful.RuleBasedStateMachine):
    """One partial file after the other, and their readers."""

    @stateful.initialize()
    def begin(self) -> None:
        self.happenings: dict[Event, Callable[[], None]] = {
            Event.START_OVER: self._start_over,
            Event.LEAVE: self._leave,
            Event.KEEP: self._keep,
            Event.DISCARD: self._discard,
            Event.REFUSE: self._refuse,
            Event.PUBLISH: self._publish,
            Event.CONVERT: self._convert,
        }
        self.data = bytearray()
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix='readers-'))
        self.cache = Cache(layout.CacheLayout(str(self.directory)))
        self.files = partials.Partials(self.cache.paths, RULES)
        self.chance = random.Random(1)
        self.following: list[Following] = []
        self._open()

    def _open(self) -> None:
        """Open the partial file; what follows the kept bytes is new."""
        self.held = contextlib.ExitStack()
        self.partial = self.held.enter_context(self.files.open(IMAGE))
        kept = self.partial.kept_bytes
        self.data = bytearray(self.data[:kept] if kept else b'')
        self.coming = self._content()

    def _content(self) -> bytes:
        makes = self.chance.choices([self.chance.randbytes, bytes], k=SIZE_BYTES // _RUN_BYTES + 1)
        return b''.join(make(_RUN_BYTES) for make in makes)[:SIZE_BYTES]

    def _current(self) -> list[Following]:
        return [each for each in self.following if each.data is self.data]

    def _end_readers(self) -> None:
        for each in self._current():
            each.is_ended = True

    # Few rules: Hypothesis leaves out some of them in each example.

    @stateful.rule(amount=amounts, ends_at_block=st.booleans(), is_followed=st.booleans())
    def write(self, amount: int, ends_at_block: bool, is_followed: bool) -> None:
        """Write more; zeros at the end become a hole if they are whole blocks."""
        start = len(self.data)
        end = min(start + amount, SIZE_BYTES)
        if ends_at_block and end - start >= BLOCK_BYTES:
            end -= end % BLOCK_BYTES
        self._write_to(end)
        if is_followed:
            self._all_read(amount)

    @stateful.precondition(lambda self: self.data)
    @stateful.rule(event=st.sampled_from(Event), amount=amounts)
    def befall(self, event: Event, amount: int) -> None:
        self.happenings[event]()
        self._all_read(amount)

    @stateful.rule(number=numbers, amount=amounts)
    def join(self, number: int, amount: int) -> None:
        at = len(self.data) * number // 99
        self.following.append(Following(self.partial.open_reader(at), at, self.data))
        _check_read(self.following[-1], amount)

    @stateful.precondition(lambda self: self.following)
    @stateful.rule(number=numbers, amount=st.none() | amounts)
    def read_or_go(self, number: int, amount: int | None) -> None:
        number %= len(self.following)
        if amount is None:
            self.following.pop(number).reader.close()
        else:
            _check_read(self.following[number], amount)

    # What befalls the file

    def _write_to(self, end: int) -> None:
        piece = self.coming[len(self.data) : end]
        if piece:
            buffer = in_pages(piece + b'\xbb' * 99)
            self.partial.write(buffer, len(piece), len(self.data))
            self.data += piece

    def _start_over(self) -> None:
        self._end_readers()
        self.partial.restart()
        self.data = bytearray()
        self.coming = self._content()

    def _leave(self) -> None:
        self.held.close()
        self._end_readers()
        self._open()

    def _keep(self) -> None:
        written = len(self.data)
        self.partial.keep()
        self._leave()
        assert len(self.data) == written

    def _discard(self) -> None:
        self.held.close()
        self.files.clear(IMAGE.id)
        self._leave()
        assert not self.data

    def _complete(self) -> None:
        self._write_to(SIZE_BYTES)
        self.partial.finish(SIZE_BYTES)
        for each in self._current():
            each.is_complete = True
        self._all_read(BLOCK_BYTES)

    def _refuse(self) -> None:
        self._complete()
        self._discard()

    def _publish(self) -> None:
        self._complete()
        self.cache.store.publish(self.partial.path, IMAGE.id)
        assert self.cache.base_file(IMAGE.id).read_bytes() == self.data
        self._release()

    def _convert(self) -> None:
        self._complete()
        self._release()

    def _release(self) -> None:
        self.partial.release_readers()
        self.held.close()
        self.files.clear(IMAGE.id)
        self._open()

    def _all_read(self, amount: int) -> None:
        for each in self.following:
            _check_read(each, amount)

    # Invariants

    @stateful.invariant()
    def file_holds_what_was_written(self) -> None:
        if hasattr(self, 'partial'):
            found = pathlib.Path(self.partial.path).read_bytes()
            assert found.ljust(len(self.data), b'\0') == self.data
            assert self.partial.has_readers == any(not each.is_ended for each in self._current())

    def teardown(self) -> None:
        if not hasattr(self, 'held'):
            return
        try:
            for each in self.following:
                while each.at < len(each.data) and not each.is_ended:
                    _check_read(each, SIZE_BYTES)
                _check_read(each, SIZE_BYTES)
        finally:
            self.held.close()
            for each in self.following:
                each.reader.close()
            shutil.rmtree(self.directory)


def _check_read(each: Following, amount: int) -> None:
    buffer = bytearray(b'\xaa' * amount)
    if each.is_ended:
        with pytest.raises(readers.Ended):
            each.reader.read_into(memoryview(buffer), 0)
    elif each.at == len(each.data) and not each.is_complete:
        with pytest.raises(TimeoutError):
            each.reader.read_into(memoryview(buffer), 0)
    else:
        count = each.reader.read_into(memoryview(buffer), 0)
        assert count or each.at == len(each.data)
        assert buffer[:count] == each.data[each.at : each.at + count]
        assert buffer[count:] == b'\xaa' * (amount - count)
        each.at += count


class TestReaders(ReaderMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = hypothesis.settings(
        max_examples=int(os.environ.get('NOVA_PRECACHE_EXAMPLES') or 100),
        stateful_step_count=25,
        derandomize='NOVA_PRECACHE_EXAMPLES' not in os.environ,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
