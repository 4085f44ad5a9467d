# SPDX-License-Identifier: Apache-2.0
"""Choose and remove expired base files.

A file's age counts from its mtime, as in Nova: a boot, a precache request and every round
in which some disk is based on the file update it. A file with an old mtime is unused.
"""

import dataclasses
import enum
import logging
import os
from collections.abc import Callable, Collection, Iterable

from nova_precache import exception, shown
from nova_precache.cache import layout, locks, store as cache_store

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExpiryRules:
    """The age at which unused files expire; ``remove`` false keeps them all."""

    original_age_seconds: float
    resized_age_seconds: float
    remove: bool = True


class ExpiryVerdict(enum.StrEnum):
    """The state of a base file in one round."""

    USED = 'used'
    KEPT = 'kept'
    EXPIRED = 'expired'


@dataclasses.dataclass(frozen=True)
class Decision:
    """A verdict on a file, with its reason."""

    file: cache_store.BaseFile
    verdict: ExpiryVerdict
    reason: str


@dataclasses.dataclass(frozen=True)
class ExpiryResult:
    """The base files that a round removed."""

    removed: tuple[str, ...] = ()
    freed_bytes: int = 0


class CacheExpirer:
    """The image cache manager of one cache.

    :param rules: may be replaced at any time
    :param used_names: returns the names of the base files that disks are based on; if it
        raises, nothing is removed
    :param clock: judges the age of files, in seconds since the epoch; None: the clock that
        stamps them
    """

    def __init__(
        self,
        *,
        store: cache_store.CacheStore,
        image_locks: locks.ImageLocks,
        rules: ExpiryRules,
        used_names: Callable[[], Collection[str]],
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self._locks = image_locks
        self.rules = rules
        self._used_names = used_names
        self._now = clock or store.now

    def run(self) -> ExpiryResult:
        """Run one round: touch used files, remove expired ones.

        :raises nova_precache.exception.CacheError: nothing was removed, for this reason
        """
        # List the files before the disks: a disk created in between touches its base file.
        files = self._store.base_files()
        used = self._used_names() if files else ()
        decisions = decide(files, used, self._now(), self.rules)
        removed = [each.file for each in decisions if self._act(each)]
        result = ExpiryResult(
            tuple(file.name for file in removed), sum(file.bytes_on_disk for file in removed)
        )
        if removed:
            freed = shown.size(result.freed_bytes)
            LOG.info('Removed unused base files, %s: %s', freed, result.removed)
        return result

    def _act(self, decision: Decision) -> bool:
        name = decision.file.name
        LOG.debug('Base file %s is %s: %s', name, decision.verdict, decision.reason)
        try:
            if decision.verdict is ExpiryVerdict.USED:
                self._store.touch_file(name)
            return decision.verdict is ExpiryVerdict.EXPIRED and self._remove(decision.file)
        except exception.CacheError as exc:  # affects this file only
            LOG.warning('Cannot touch or remove base file %s: %s', name, exc)
            return False

    def _remove(self, file: cache_store.BaseFile) -> bool:
        with self._locks.try_hold(file.name) as held:
            # A boot that may not touch the file still holds the lock while it creates its disk.
            removed = (
                held
                and (file.owner == os.geteuid() or file.name not in self._used_names())
                and self._store.remove_unchanged(file)
            )
        if not removed:
            LOG.debug('Keeping base file %s: it is %s', file.name, 'used' if held else 'locked')
        return removed


def decide(
    files: Iterable[cache_store.BaseFile],
    used_names: Collection[str],
    now: float,
    rules: ExpiryRules,
) -> list[Decision]:
    """Decide the verdict on each file."""
    return [Decision(file, *_verdict(file, used_names, now, rules)) for file in files]


def _verdict(
    file: cache_store.BaseFile, used_names: Collection[str], now: float, rules: ExpiryRules
) -> tuple[ExpiryVerdict, str]:
    if file.name in used_names:
        return ExpiryVerdict.USED, 'a disk is based on it'
    resized = layout.is_resized_name(file.name)
    limit = rules.resized_age_seconds if resized else rules.original_age_seconds
    age = f'{file.age_seconds(now):.0f} s old, expires at {limit:g} s'
    if file.age_seconds(now) < limit:
        return ExpiryVerdict.KEPT, age
    if not rules.remove:
        return ExpiryVerdict.KEPT, f'{age}, but removal is disabled'
    return ExpiryVerdict.EXPIRED, age
