# SPDX-License-Identifier: Apache-2.0
"""Looks up which kernel and ramdisk an image needs now, for the calls to computes.

A compute that has the image cached does not query the image service, so each call names the
companions of the image. A request may cause a thousand calls for one image, so the answer is
cached for a while. A call waits only briefly for a silent image service: the compute then uses
the companions that it recorded itself.
"""

import concurrent.futures
import logging
import threading
import time
from collections.abc import Callable

from nova_precache import exception, model
from nova_precache.image import companions, service

LOG = logging.getLogger(__name__)

KEPT_SECONDS = 60.0
ANSWER_SECONDS = 5.0
MOST_IMAGES = 1000

Needed = tuple[model.Companion, ...]


class CompanionLookup:
    """The companions of images, by the image service; thread-safe.

    :param clock: monotonic seconds
    """

    def __init__(
        self, images: service.ImageService, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._images = images
        self._clock = clock
        self._lock = threading.Lock()
        self._queries: dict[str, _Query] = {}

    def get(self, image_id: str) -> Needed | None:
        """Return the companions of an image; None if they are unknown."""
        with self._lock:
            query = self._queries.get(image_id)
            if query is None or query.is_old(self._clock()):
                known = None if query is None else query.answer()
                query = self._ask(image_id, known)
        return query.answer(query.asked_at + ANSWER_SECONDS - self._clock())

    def _ask(self, image_id: str, known: Needed | None) -> '_Query':
        while len(self._queries) >= MOST_IMAGES:
            del self._queries[next(iter(self._queries))]
        query = _Query(self._clock(), known)
        threading.Thread(
            target=self._look_up, args=(image_id, query), name='companions', daemon=True
        ).start()
        self._queries[image_id] = query
        return query

    def _look_up(self, image_id: str, query: '_Query') -> None:
        try:
            image = self._images.show(image_id)
            query.answered.set_result(companions.look_up(image, self._images.show).needed)
        except exception.PrecacheError as exc:
            LOG.debug('Cannot look up the companions of image %s: %s', image_id, exc)
            query.answered.set_result(query.known)
        except Exception:
            LOG.exception('Looking up the companions of image %s failed', image_id)
            query.answered.set_result(query.known)


class _Query:
    """A query for the companions of an image, with the previous answer as a fallback."""

    def __init__(self, asked_at: float, known: Needed | None) -> None:
        self.asked_at = asked_at
        self.known = known
        self.answered: concurrent.futures.Future[Needed | None] = concurrent.futures.Future()

    def is_old(self, now: float) -> bool:
        return now >= self.asked_at + KEPT_SECONDS

    def answer(self, wait_seconds: float = 0) -> Needed | None:
        """Return the answer if it arrives in time, else the previous one."""
        try:
            return self.answered.result(max(0, wait_seconds))
        except TimeoutError:
            return self.known
