# SPDX-License-Identifier: Apache-2.0
"""Choose and remove expired base files, and those of an image that is to be removed.

A file's age counts from its mtime, as in Nova: a boot, a precache request and every round
in which some disk is based on the file update it. A file with an old mtime is unused. An
image that is removed on request may be young: its files are unused if no disk is based on
them while their locks are held.
"""

import dataclasses
import enum
import logging
import os
from collections.abc import Callable, Collection, Iterable

from nova_precache import exception, model, shown
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

    def remove(
        self, image_id: str, kept_ids: Collection[str] = (), min_age_seconds: float = 0
    ) -> model.ImageRemoval:
        """Remove an image unless it is used: its base file, resized copies and companions.

        A companion stays if it is used, or another image in the cache needs it.

        :param kept_ids: images that stay even if they are companions of this one
        :param min_age_seconds: a younger file counts as used by a boot that has not created its
            disk yet
        :raises nova_precache.exception.CacheError: some files may be left, for this reason
        """
        name = layout.base_name(image_id)
        files = [each for each in self._store.base_files() if layout.image_name(each.name) == name]
        if not files:
            return model.ImageRemoval(model.RemovalStatus.ABSENT)
        why_used = self._why_used(name, files, min_age_seconds)
        if why_used is not None:
            return model.ImageRemoval(model.RemovalStatus.USED, why_used)
        companions = self._store.noted(name) or ()
        # The resized copies first: a part of the image is left until its base file is gone.
        ordered = sorted(files, key=lambda file: file.name == name)
        removed = [file for file in ordered if self._remove(file, looks=True)]
        result = model.ImageRemoval(
            model.RemovalStatus.REMOVED,
            freed_bytes=sum(file.bytes_on_disk for file in removed),
            names=tuple(file.name for file in removed),
        )
        if len(removed) < len(files):
            why = 'a boot or a transfer uses it now'
            return dataclasses.replace(result, status=model.RemovalStatus.USED, reason=why)
        for companion in companions:
            if companion.id not in kept_ids:
                other = self.remove(companion.id, kept_ids, min_age_seconds)
                result = dataclasses.replace(
                    result,
                    freed_bytes=result.freed_bytes + other.freed_bytes,
                    names=result.names + other.names,
                )
        return result

    def _why_used(
        self, name: str, files: Iterable[cache_store.BaseFile], min_age_seconds: float
    ) -> str | None:
        needing = self._store.images_needing(name)
        if needing:
            return f'images in this cache need it as kernel or ramdisk: {shown.some(needing)}'
        # Below 0 if it was touched just now, by rounding, or if the clock was put back.
        age_seconds = max(0.0, min(file.age_seconds(self._now()) for file in files))
        if age_seconds < min_age_seconds:
            return (
                f'it was touched {age_seconds:.0f} s ago, and a boot of nova-compute '
                f'may need it for {min_age_seconds:g} s'
            )
        used = self._used_names()
        return 'an instance uses it' if any(file.name in used for file in files) else None

    def _act(self, decision: Decision) -> bool:
        name = decision.file.name
        LOG.debug('Base file %s is %s: %s', name, decision.verdict, decision.reason)
        try:
            if decision.verdict is ExpiryVerdict.USED:
                self._store.touch_file(name)
            # A boot that may not touch the file still holds the lock while it creates its disk.
            looks = decision.file.owner != os.geteuid()
            is_expired = decision.verdict is ExpiryVerdict.EXPIRED
            return is_expired and self._remove(decision.file, looks=looks)
        except exception.CacheError as exc:  # affects this file only
            LOG.warning('Cannot touch or remove base file %s: %s', name, exc)
            return False

    def _remove(self, file: cache_store.BaseFile, *, looks: bool) -> bool:
        """Remove a file, unless it is locked or was touched since it was listed.

        :param looks: look again, under its lock, whether a disk is based on it
        """
        with self._locks.try_hold(file.name) as held:
            removed = (
                held
                and not (looks and file.name in self._used_names())
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
