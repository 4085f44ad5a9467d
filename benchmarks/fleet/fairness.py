# SPDX-License-Identifier: Apache-2.0
"""Who gets the slots: an urgent request, hosts beside ones that stall, and beside one that crawls.

The conductor is real, with simulated computes whose images all take the same time; the results
are in times of an image, so that they do not depend on it.
"""

import contextlib
import dataclasses
import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from benchmarks.fleet import site
from benchmarks.fleet.cases import SQLITE, Case
from benchmarks.fleet.computes import CACHED, SimulatedComputes
from nova_precache import model
from nova_precache.compute import rpcapi
from nova_precache.db import jobs
from tools.servers import databases

SLOTS = 16
LONG_IMAGES = 10
LONG_HOSTS = 40
URGENT_HOSTS = 10
URGENT_BESIDE_HOSTS = 5
STALLING_HOSTS, FAST_HOSTS = 99, 101
BESIDE_CRAWLING = 5
# The results are read after this number of images.
ENOUGH_IMAGES = 20
URGENT_AFTER_IMAGES = 5
CRAWLED_IMAGES = 2
_LOOK_SECONDS = 0.005
_LOW, _HIGH = -10, 10
# What a compute reports of a download that it gives up; earlier releases never do.
_GIVEN_UP: dict[str, Any] = {'gained_bytes': 1} if hasattr(model.ImageOutcome, 'is_slow') else {}


@dataclasses.dataclass(frozen=True)
class Fairness:
    """Results in times of an image; those that were not reached are the time that was waited.

    :ivar urgent_images: until the last host of an urgent request is called, behind a long one
    :ivar fast_left: hosts that have nothing cached, beside ones that stall
    :ivar urgent_beside_images: until the last host of an urgent request is called, beside them
    :ivar left_beside_crawling: hosts that have nothing cached, beside one that crawls
    """

    image_seconds: float
    urgent_images: float
    fast_left: int
    urgent_beside_images: float
    left_beside_crawling: int


def measure(image_seconds: float) -> Fairness:
    with tempfile.TemporaryDirectory(prefix='fleet-') as name:
        files = databases.Files(pathlib.Path(name))
        urgent_images = _urgent(_Scene(files, image_seconds))
        fast_left, urgent_beside_images = _beside_stalling(_Scene(files, image_seconds))
        left_beside_crawling = _beside_crawling(_Scene(files, image_seconds))
    return Fairness(
        image_seconds, urgent_images, fast_left, urgent_beside_images, left_beside_crawling
    )


class ScriptedComputes(SimulatedComputes):
    """Each image takes the same time, except on hosts that never end one.

    :ivar stalling: hosts that end no image until the test is over
    :ivar crawling: likewise, unless a compute of this release gives such an image up
    :ivar done: the hosts and images that are cached
    """

    def __init__(self, job_store: jobs.Jobs, image_seconds: float) -> None:
        super().__init__(job_store)
        self._image_seconds = image_seconds
        self.stalling: Collection[str] = ()
        self.crawling: Collection[str] = ()
        self.done: set[tuple[str, str]] = set()
        self.over = threading.Event()

    def _transfer(self, host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        if host in self.crawling and _GIVEN_UP:
            self.over.wait(CRAWLED_IMAGES * self._image_seconds)
            why = 'it crawls'
            return model.ImageOutcome(model.TaskStatus.ERROR, why, model.Retry.BACKOFF, **_GIVEN_UP)
        if host in self.stalling or host in self.crawling:
            self.over.wait()
            return CACHED
        self.over.wait(self._image_seconds)
        self.done.add((host, call.image_id))
        return CACHED


@dataclasses.dataclass(frozen=True)
class _Scene:
    files: databases.Files
    image_seconds: float

    @contextlib.contextmanager
    def played(
        self, hosts: int, cells: int, slots: int
    ) -> Iterator[tuple[site.World, ScriptedComputes]]:
        case = Case(SQLITE, hosts, cells, parallel=slots)
        with self.files.empty() as url, site.opened(case, url) as world:
            computes = ScriptedComputes(world.parts.jobs, self.image_seconds)
            world.simulate(computes)
            with world.conducting():
                try:
                    yield world, computes
                finally:
                    computes.over.set()

    def ask(
        self,
        world: site.World,
        hosts: Sequence[str],
        images: int = 1,
        priority: int = 0,
    ) -> set[tuple[str, str]]:
        """Request images, and return each host with each image."""
        new = world.new_request(images, hosts=hosts, priority=priority)
        world.ask(new)
        return {(host, image) for host in hosts for image in new.images}

    def images_until(self, is_so: Callable[[], bool], most: float = ENOUGH_IMAGES) -> float:
        """Wait until it is so, at most some images long, and return how long that was."""
        began = time.monotonic()
        while (passed := (time.monotonic() - began) / self.image_seconds) < most:
            if is_so():
                break
            time.sleep(_LOOK_SECONDS)
        return passed

    def rest(self, images: float) -> None:
        time.sleep(images * self.image_seconds)


def _urgent(scene: _Scene) -> float:
    """Ask for few hosts while others have many images before them."""
    with scene.played(LONG_HOSTS + URGENT_HOSTS, 1, SLOTS) as (world, computes):
        scene.ask(world, world.hosts[:LONG_HOSTS], LONG_IMAGES, _LOW)
        scene.images_until(lambda: len(computes.called) >= SLOTS)
        scene.rest(0.5)
        urgent = scene.ask(world, world.hosts[LONG_HOSTS:], priority=_HIGH)
        return scene.images_until(lambda: computes.called.keys() >= urgent)


def _beside_stalling(scene: _Scene) -> tuple[int, float]:
    """Ask for hosts that stall, in one cell, and fast ones in another; then urgently for some."""
    with scene.played(2 * FAST_HOSTS, 2, SLOTS) as (world, computes):
        fast = world.hosts[1::2]
        computes.stalling = frozenset(world.hosts[::2][:STALLING_HOSTS])
        asked = scene.ask(world, [*sorted(computes.stalling), *fast])
        wanted = {(host, image) for host, image in asked if host in set(fast)}
        began = time.monotonic()
        scene.images_until(lambda: len(computes.called) >= SLOTS)
        scene.rest(URGENT_AFTER_IMAGES)
        urgent = scene.ask(world, fast[-URGENT_BESIDE_HOSTS:], priority=_HIGH)
        waited = scene.images_until(
            lambda: computes.called.keys() >= urgent, ENOUGH_IMAGES - URGENT_AFTER_IMAGES
        )
        passed = (time.monotonic() - began) / scene.image_seconds
        scene.images_until(lambda: computes.done >= wanted, ENOUGH_IMAGES - passed)
        return len(wanted - computes.done), waited


def _beside_crawling(scene: _Scene) -> int:
    """Ask for hosts behind one that crawls, with a single slot."""
    with scene.played(1 + BESIDE_CRAWLING, 1, 1) as (world, computes):
        computes.crawling = frozenset(world.hosts[:1])
        asked = scene.ask(world, world.hosts)
        wanted = {(host, image) for host, image in asked if host not in computes.crawling}
        scene.images_until(lambda: computes.done >= wanted)
        return len(wanted - computes.done)
