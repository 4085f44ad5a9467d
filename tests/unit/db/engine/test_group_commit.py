# SPDX-License-Identifier: Apache-2.0
"""Concurrent commits are committed together, and fail separately."""

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent import futures

import pytest

from nova_precache.db.engine import group_commit
from tools.waiting import TIMEOUT_SECONDS


class Group(group_commit.Group[str, Mapping[str, str]]):
    """A group of words, which a commit maps to what they became."""

    def add(self, word: str) -> str:
        return self.submit(word, lambda committed: committed[word])


class Interrupted(BaseException):
    """Ends a working thread."""


class Lost(Exception):
    """A failure that no word causes."""


class Store:
    """Commits words, the first time once the test lets it, and records what it committed."""

    def __init__(self) -> None:
        self.groups: list[Sequence[str]] = []
        self.errors: list[BaseException] = []
        self.tried = 0
        self.committing = threading.Event()
        self.opened = threading.Event()

    def commit(self, words: Sequence[str]) -> Mapping[str, str]:
        self.committing.set()
        assert self.opened.wait(TIMEOUT_SECONDS)
        self.tried += 1
        if self.errors:
            raise self.errors.pop(0)
        if any(word.startswith('bad') for word in words):
            raise ValueError(' '.join(words))
        self.groups.append(words)
        return {word: word.upper() for word in words}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def group(store: Store) -> Group:
    return Group(store.commit, lambda word: [word[-1]], linger=lambda: None)


def _submit_behind(
    group: Group, store: Store, pool: futures.Executor, first: str, words: Sequence[str]
) -> list[futures.Future[str]]:
    """Queue words in order while the first is being committed."""
    submitted = [pool.submit(group.add, first)]
    assert store.committing.wait(TIMEOUT_SECONDS)
    for count, word in enumerate(words, start=1):
        submitted.append(pool.submit(group.add, word))
        _wait_gathered(group, count)
    store.opened.set()
    return submitted


def _wait_gathered(group: Group, count: int) -> None:
    pause = threading.Event()
    for _ in range(TIMEOUT_SECONDS * 500):
        if len(group._waiting) == count:
            return
        pause.wait(0.002)
    raise AssertionError('they did not gather')


def test_lone_member_commits_at_once(group: Group, store: Store) -> None:
    store.opened.set()

    assert [group.add('a'), group.add('b')] == ['A', 'B']
    assert store.groups == [['a'], ['b']]


def test_gathered_members_commit_together(group: Group, store: Store) -> None:
    with futures.ThreadPoolExecutor(5) as pool:
        submitted = _submit_behind(group, store, pool, 'a', ['b', 'c', 'd'])

        assert [each.result(TIMEOUT_SECONDS) for each in submitted] == ['A', 'B', 'C', 'D']
    assert store.groups == [['a'], ['b', 'c', 'd']]


def test_failing_member_fails_alone(group: Group, store: Store) -> None:
    with futures.ThreadPoolExecutor(5) as pool:
        first, good, bad, last = _submit_behind(group, store, pool, 'a', ['b', 'bad c', 'd'])

        with pytest.raises(ValueError, match=r'^bad c$'):
            bad.result(TIMEOUT_SECONDS)
        assert [each.result(TIMEOUT_SECONDS) for each in (first, good, last)] == ['A', 'B', 'D']
    assert store.groups == [['a'], ['b'], ['d']]


def test_same_key_members_commit_in_order(group: Group, store: Store) -> None:
    with futures.ThreadPoolExecutor(6) as pool:
        submitted = _submit_behind(group, store, pool, 'a', ['begin b', 'c', 'finish b', 'd'])

        for each in submitted:
            each.result(TIMEOUT_SECONDS)
    assert store.groups == [['a'], ['begin b', 'c'], ['finish b', 'd']]


def test_group_size_is_bounded(group: Group, store: Store) -> None:
    words = [chr(ord('b') + number) for number in range(group_commit.MOST_MEMBERS + 1)]
    with futures.ThreadPoolExecutor(len(words) + 1) as pool:
        for each in _submit_behind(group, store, pool, 'a', words):
            each.result(TIMEOUT_SECONDS)

    assert [len(each) for each in store.groups] == [1, group_commit.MOST_MEMBERS, 1]


def test_group_commits_after_failure(group: Group, store: Store) -> None:
    store.opened.set()
    with pytest.raises(ValueError, match='bad'):
        group.add('bad')

    assert group.add('a') == 'A'


def test_shared_failure_fails_all_members(
    store: Store,
) -> None:
    group = Group(store.commit, lambda word: [word[-1]], of_all=Lost)
    with futures.ThreadPoolExecutor(5) as pool:
        submitted = [pool.submit(group.add, 'a')]
        assert store.committing.wait(TIMEOUT_SECONDS)
        for count, word in enumerate(['b', 'c'], start=1):
            submitted.append(pool.submit(group.add, word))
            _wait_gathered(group, count)
        store.errors = [Lost('of a'), Lost('of b and c')]
        store.opened.set()

        errors = [each.exception(TIMEOUT_SECONDS) for each in submitted]
    assert [str(error) for error in errors] == ['of a', 'of b and c', 'of b and c']
    assert store.tried == 2
    assert group.add('d') == 'D'


def test_interrupted_leader_hands_over(group: Group, store: Store) -> None:
    with futures.ThreadPoolExecutor(5) as pool:
        first = pool.submit(group.add, 'a')
        assert store.committing.wait(TIMEOUT_SECONDS)
        leader = pool.submit(group.add, 'b')
        _wait_gathered(group, 1)
        other = pool.submit(group.add, 'c')
        _wait_gathered(group, 2)
        store.errors = [ValueError('of a'), Interrupted()]
        store.opened.set()

        assert isinstance(first.exception(TIMEOUT_SECONDS), ValueError)
        assert isinstance(leader.exception(TIMEOUT_SECONDS), Interrupted)
        assert other.result(TIMEOUT_SECONDS) == 'C'
    assert store.groups == [['c']]


@pytest.mark.parametrize('is_heir', [False, True])
def test_interrupted_waiter_not_waited_for(
    group: Group, store: Store, monkeypatch: pytest.MonkeyPatch, is_heir: bool
) -> None:
    class Dying(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if is_heir:
                assert super().wait(TIMEOUT_SECONDS)
            raise Interrupted

    class Entry(group_commit._Entry[group_commit.M, group_commit.C]):
        def __init__(self, member: group_commit.M, keys: Collection[str]) -> None:
            super().__init__(member, keys)
            if member == 'b':
                self.woken = Dying()

    monkeypatch.setattr(group_commit, '_Entry', Entry)
    with futures.ThreadPoolExecutor(5) as pool:
        first = pool.submit(group.add, 'a')
        assert store.committing.wait(TIMEOUT_SECONDS)
        dying = pool.submit(group.add, 'b')
        if is_heir:
            _wait_gathered(group, 1)
        else:
            assert isinstance(dying.exception(TIMEOUT_SECONDS), Interrupted)
        last = pool.submit(group.add, 'c')
        _wait_gathered(group, 1 + is_heir)
        store.opened.set()

        assert first.result(TIMEOUT_SECONDS) == 'A'
        assert isinstance(dying.exception(TIMEOUT_SECONDS), Interrupted)
        assert last.result(TIMEOUT_SECONDS) == 'C'
    assert store.groups == [['a'], ['c']]


def test_group_lingers_only_under_load(
    store: Store,
) -> None:
    lingered: list[int] = []
    group: Group = Group(
        store.commit, lambda word: [word[-1]], linger=lambda: lingered.append(len(store.groups))
    )
    with futures.ThreadPoolExecutor() as pool:
        for submitted in _submit_behind(group, store, pool, 'a', ['b', 'c']):
            submitted.result(TIMEOUT_SECONDS)

    assert store.groups == [['a'], ['b', 'c']]
    assert lingered == []
    for word in 'defg':
        group.add(word)
    assert lingered == [2, 3, 4]
