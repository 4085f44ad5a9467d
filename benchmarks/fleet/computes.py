# SPDX-License-Identifier: Apache-2.0
"""Simulated computes, which answer the conductor in its own process."""

import time

from nova_precache import context, model
from nova_precache.compute import rpcapi
from nova_precache.db import jobs
from nova_precache.image import fake

IMAGE_BYTES = 1024
CACHED = model.ImageOutcome(
    model.TaskStatus.CACHED, bytes_done=IMAGE_BYTES, bytes_total=IMAGE_BYTES
)


class SimulatedComputes:
    """Implements the client of the computes for all computes of all cells.

    As a real one, each asks the conductor before the first byte, which is a transaction; then it
    waits and reports the image cached.

    :ivar called: the time of the first call for each host and image, since the epoch
    """

    def __init__(self, job_store: jobs.Jobs, delay_seconds: float = 0.0) -> None:
        self._jobs = job_store
        self._delay_seconds = delay_seconds
        self.called: dict[tuple[str, str], float] = {}

    def cache_image(
        self, ctxt: context.RequestContext, host: str, call: rpcapi.CacheImageCall
    ) -> model.ImageOutcome | None:
        self.called.setdefault((host, call.image_id), time.time())
        if not self._jobs.begin(call.job_id, call.epoch, starts=True):
            return None
        return self._transfer(host, call)

    def _transfer(self, host: str, call: rpcapi.CacheImageCall) -> model.ImageOutcome:
        if self._delay_seconds:
            time.sleep(self._delay_seconds)
        return CACHED


class Images(fake.FakeImageService):
    """Images without downloads, of an image service without tokens."""

    def endpoint(self) -> str | None:
        return None

    def token(self, *, fresh: bool = False) -> str | None:
        return None
