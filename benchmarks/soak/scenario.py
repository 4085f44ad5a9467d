# SPDX-License-Identifier: Apache-2.0
"""Executes the steps of the plan and counts their results."""

import collections
import contextlib
import dataclasses
import logging
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from benchmarks import compute, images, observed
from benchmarks.images import MIB
from benchmarks.soak import judge, link, site
from benchmarks.soak.plan import Step, What
from nova_precache.cache import layout, locks

LOG = logging.getLogger(__name__)

_MOST_AT_ONCE = 8
_MOST_INSTANCES = 24
_HUNG_SECONDS = 120
_LONGEST_STALL_SECONDS = 6
_LONGEST_FULL_SECONDS = 4
_MOST_LEFT_FREE_BYTES = 48 * MIB
_FINAL_ATTEMPTS = 4
_SETTLE_SECONDS = 30


@dataclasses.dataclass(eq=False)
class PendingCall:
    """A call of a compute that has not ended yet."""

    image: site.SoakImage
    compute: compute.Compute
    answer: 'futures.Future[Any]'
    asked_at: float
    transfer: str | None = None


class Scenario:
    """One soak: the first compute lives all the time, the others are killed at random.

    :ivar wrong: messages about failed checks
    """

    def __init__(
        self,
        *,
        disk: site.Disk,
        glance: images.Glance,
        glance_link: link.Link,
        computes: Sequence[compute.Compute],
        soak_images: Sequence[site.SoakImage],
    ) -> None:
        self._disk = disk
        self._glance = glance
        self._link = glance_link
        self._computes = computes
        self._images = soak_images
        self._paths = site.cache_layout(disk.path)
        self._locks = locks.ImageLocks(self._paths.lock_directory)
        self._calls: list[PendingCall] = []
        self._disks: dict[pathlib.Path, site.SoakImage] = {}
        self._removed_at: dict[str, float] = {}
        self._killed: set[PendingCall] = set()
        self._full_until: float | None = None
        self._flipped = 0
        self.wrong: list[str] = []
        self.done: collections.Counter[str] = collections.Counter()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.memory: list[tuple[float, int]] = []
        self._handles: list[str] = []
        self._acts: dict[What, Callable[[Step], bool]] = {
            What.CACHE: self._cache,
            What.BOOT: self._boot,
            What.STOP: self._stop,
            What.CUT: self._cut,
            What.STALL: self._stall,
            What.SPOIL: self._spoil,
            What.KILL: self._kill,
            What.RESTART_GLANCE: self._restart_glance,
            What.FILL: self._fill,
            What.FLIP: self._flip,
            What.REMOVE: self._remove,
            What.DELETE_INSTANCE: self._delete_instance,
            What.CLEAN: self._clean,
            What.REST: self._rest,
        }

    def begin(self) -> None:
        """Cache each image once on the long-lived compute, and record its open files."""
        for image in self._images:
            self._computes[0].call('cache_image', image_id=image.id)
        self._handles = observed.open_files(self._computes[0].pid)

    def take(self, step: Step) -> None:
        """Execute a step and check the results of earlier ones."""
        LOG.info('%s', step)
        happened = self._acts[step.what](step)
        self.done[step.what if happened else f'{step.what} (nothing to do)'] += 1
        if self._full_until is not None and time.monotonic() > self._full_until:
            self._empty_disk()
        self._collect()

    def end(self) -> None:
        """Wait for all calls and check the cache."""
        self._link.heal()
        self._empty_disk()
        self._wait_for_calls()
        left = judge.leftovers(self._paths, finished=False)
        self.wrong += [f'left over while idle: {name}' for name in left]
        self.wrong += judge.wrong_files(self._images, self._paths)
        self._finish_images()
        self._check_finished()
        self._check_handles()

    def _check_finished(self) -> None:
        """Check that the cache holds the images alone after a compute has cleaned up."""
        self._computes[1].kill()
        self._computes[1].start()
        for image in self._images:
            if not judge.is_right(image, self._paths):
                self.wrong.append(f'{image.name} is missing or wrong at the end')
        left = judge.leftovers(self._paths, finished=True)
        self.wrong += [f'left over at the end: {name}' for name in left]
        self.wrong += judge.wrong_disks(self._disks)
        mistaken = sum(self.outcomes[name] for name in ('ImageMismatch', 'UnsafeImage'))
        if mistaken > self._link.spoiled + self._flipped:
            self.wrong.append(f'{mistaken} correct images were refused')
        growth = judge.growth_bytes(self.memory)
        if growth > judge.FLAT_GROWTH_BYTES:
            self.wrong.append(f'memory grew by {growth / MIB:.1f} MiB')

    def report(self) -> str:
        """Return the counts of steps and results, and the failed checks."""
        resumed = self._glance.access_log.read_text().count('/file 206 ')
        slope = judge.slope_bytes_per_minute(self.memory) / MIB
        growth = judge.growth_bytes(self.memory) / MIB
        lines = [
            'Steps: ' + _counts(self.done),
            'Outcomes: ' + _counts(self.outcomes),
            f'Resumed downloads: {resumed}',
            f'Bytes corrupted in transit: {self._link.spoiled}, on the disk: {self._flipped}',
            f'Memory of the long-lived compute: {slope:+.2f} MiB per minute ({growth:+.1f} MiB)',
            f'Root disks compared: {len(self._disks)}',
            '',
            f'Wrong: {len(self.wrong)}',
            *(f'  {each}' for each in self.wrong),
        ]
        return '\n'.join(lines)

    # The steps; each returns whether there was an object for it.

    def _cache(self, step: Step) -> bool:
        transfer = str(uuid.uuid4())
        image = self._image(step)
        return self._ask(step, image, 'controlled', image_id=image.id, transfer=transfer)

    def _boot(self, step: Step) -> bool:
        if len(self._disks) >= _MOST_INSTANCES:
            return False
        image = self._image(step)
        return self._ask(step, image, 'boot', image_id=image.id, instance=str(uuid.uuid4()))

    def _ask(self, step: Step, image: site.SoakImage, what: str, **arguments: str) -> bool:
        if len(self._calls) >= _MOST_AT_ONCE:
            return False
        asked = self._computes[step.compute]
        answer = asked.ask(what, **arguments)
        transfer = arguments.get('transfer')
        self._calls.append(PendingCall(image, asked, answer, time.monotonic(), transfer))
        return True

    def _stop(self, step: Step) -> bool:
        running = [each for each in self._calls if each.transfer and not each.answer.done()]
        if not running:
            return False
        call = running[int(step.choice * len(running))]
        stopped = call.compute.ask('stop', transfer=call.transfer, error=step.error)
        return bool(stopped.result())

    def _cut(self, step: Step) -> bool:
        return self._link.cut(reset=step.amount < 0.5) > 0

    def _stall(self, step: Step) -> bool:
        self._link.stall(step.amount * _LONGEST_STALL_SECONDS)
        return True

    def _spoil(self, step: Step) -> bool:
        self._link.spoil()
        return True

    def _kill(self, step: Step) -> bool:
        victim = self._computes[1]
        self._killed |= {each for each in self._calls if each.compute is victim}
        victim.kill()
        victim.start()
        return True

    def _restart_glance(self, step: Step) -> bool:
        self._glance.stop()
        time.sleep(step.amount)
        self._glance.start()
        return True

    def _fill(self, step: Step) -> bool:
        if self._full_until is not None or not self._disk.is_own:
            return False
        self._disk.fill(int(step.amount * _MOST_LEFT_FREE_BYTES))
        self._full_until = time.monotonic() + step.choice * _LONGEST_FULL_SECONDS
        return True

    def _flip(self, step: Step) -> bool:
        """Corrupt a byte of a partial download, as a bad disk does, while no transfer writes it."""
        parts = [
            name
            for name in sorted(os.listdir(self._paths.base_directory))
            if name.endswith(f'.{judge.PART_SUFFIX}')
        ]
        if not parts:
            return False
        name = parts[int(step.choice * len(parts))]
        with self._locks.try_hold(str(layout.base_name_of_partial(name))) as held:
            turned = held and _corrupt_byte(self._paths.path_of(name), step.amount)
        self._flipped += turned
        return turned

    def _remove(self, step: Step) -> bool:
        image = self._image(step)
        self._removed_at[image.id] = time.monotonic()
        try:
            os.unlink(self._paths.base_path(image.id))
        except FileNotFoundError:
            return False
        return True

    def _delete_instance(self, step: Step) -> bool:
        if not self._disks:
            return False
        path = list(self._disks)[int(step.choice * len(self._disks))]
        del self._disks[path]
        shutil.rmtree(path.parent)
        return True

    def _clean(self, step: Step) -> bool:
        asked = self._computes[step.compute]
        with contextlib.suppress(compute.CommandFailed):  # as on a full disk
            asked.call('clean')
        return True

    def _rest(self, step: Step) -> bool:
        futures.wait([each.answer for each in self._calls], _HUNG_SECONDS)
        resident = observed.memory(self._computes[0].pid).resident_bytes
        self.memory.append((time.monotonic(), resident))
        LOG.info('Resident: %.1f MiB', resident / MIB)
        return True

    # The checks.

    def _image(self, step: Step) -> site.SoakImage:
        return self._images[int(step.choice * len(self._images))]

    def _empty_disk(self) -> None:
        self._disk.empty()
        self._full_until = None

    def _collect(self) -> None:
        for call in [each for each in self._calls if each.answer.done()]:
            self._calls.remove(call)
            self._account(call)
        for call in self._calls:
            if time.monotonic() - call.asked_at > _HUNG_SECONDS:
                self.wrong.append(f'{call.image.name} has hung for {_HUNG_SECONDS} s')
                call.asked_at = float('inf')  # reported once

    def _account(self, call: PendingCall) -> None:
        try:
            outcome = call.answer.result()
        except compute.WorkerGone as exc:
            self.outcomes['killed'] += 1
            if call not in self._killed:
                self.wrong.append(f'the compute died: {exc}')
            return
        except compute.CommandFailed as exc:
            self.outcomes[exc.error] += 1
            if not exc.is_known:
                self.wrong.append(f'{call.image.name}: {exc}')
            return
        if call.transfer is None:
            self._disks[pathlib.Path(outcome)] = call.image
            outcome = 'booted'
        self.outcomes[outcome] += 1
        self._check_image(call, outcome)

    def _check_image(self, call: PendingCall, outcome: str) -> None:
        """Check that an image reported as cached is there, unless it was removed since."""
        right = judge.is_right(call.image, self._paths)
        removed = self._removed_at.get(call.image.id, 0.0) >= call.asked_at
        if right is False or (right is None and not removed):
            state = 'wrong' if right is False else 'missing'
            self.wrong.append(f'{call.image.name} is {state} after "{outcome}"')

    def _wait_for_calls(self) -> None:
        futures.wait([each.answer for each in self._calls], _HUNG_SECONDS)
        self._collect()
        self.wrong += [f'{each.image.name} never ended' for each in self._calls]

    def _finish_images(self) -> None:
        """Cache all images; data corrupted before may cost an attempt."""
        for image in self._images:
            for attempt in range(_FINAL_ATTEMPTS):
                try:
                    self._computes[0].call('cache_image', image_id=image.id)
                    break
                except compute.CommandFailed as exc:
                    self.outcomes[exc.error] += 1
                    if attempt + 1 == _FINAL_ATTEMPTS:
                        self.wrong.append(f'{image.name} cannot be cached at the end: {exc}')

    def _check_handles(self) -> None:
        """Check for leaked handles and processes, after closed connections are cleaned up."""
        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            after = observed.open_files(self._computes[0].pid)
            leaked = judge.leaked_handles(self._handles, after)
            known = [os.getpid(), *(each.pid for each in self._computes)]
            left = judge.left_processes(self._disk.path, known)
            if not (leaked or left) or time.monotonic() > end:
                break
            time.sleep(0.5)
        self.wrong += [f'left open: {each}' for each in leaked]
        self.wrong += [f'left running: {each}' for each in left]


def _corrupt_byte(path: str, where: float) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, 'r+b', buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return False
        position = int(where * size)
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 0xFF]))
        return True
    return False


def _counts(counted: 'collections.Counter[str]') -> str:
    return ', '.join(f'{name} {count}' for name, count in sorted(counted.items())) or 'none'
