# SPDX-License-Identifier: Apache-2.0
"""Whether those who asked for an image may still have it, while its job is under way.

A request was checked when it was made, and planned. It is checked again before each retry, and
before a compute publishes what came; the tasks of those who may not have it any more end.
"""

from collections.abc import Mapping

from nova_precache import exception, model
from nova_precache.conductor import image_access, tracker
from nova_precache.db import jobs
from nova_precache.image import service


class Askers:
    """The requests that want a job; used by many threads.

    :param images: the image service as this service's own credentials see it
    """

    def __init__(
        self, job_store: jobs.Jobs, images: service.ImageService, track: tracker.Tracker
    ) -> None:
        self._jobs = job_store
        self._images = images
        self._tracker = track

    def check(self, job_id: str, image_id: str) -> None:
        """Leave a job to those who may have its image, and end the tasks of all others.

        :raises nova_precache.exception.ImageNotUsable: no request is left that may have it
        :raises nova_precache.exception.ImageServiceUnavailable: no answer; no task has ended
        :raises nova_precache.exception.ImageUnauthorized: likewise
        """
        refused = self._refusals(job_id, image_id)
        for request_id, why in refused.items():
            outcome = model.ImageOutcome(model.TaskStatus.ERROR, str(why))
            self._tracker.settle(self._jobs.end_tasks(job_id, [request_id], outcome))
        if refused and not self._jobs.askers(job_id):
            raise next(iter(refused.values()))

    def _refusals(self, job_id: str, image_id: str) -> Mapping[str, exception.ImageNotUsable]:
        found: dict[tuple[str | None, bool], exception.ImageNotUsable | None] = {}
        refused = {}
        for asker in self._jobs.askers(job_id):
            who = asker.project_id, asker.is_admin
            if who not in found:
                found[who] = self._refusal(image_id, *who)
            why = found[who]
            if why is not None:
                refused[asker.request_id] = why
        return refused

    def _refusal(
        self, image_id: str, project_id: str | None, is_admin: bool
    ) -> exception.ImageNotUsable | None:
        try:
            image_access.check_bootable(self._images, image_id, project_id, is_admin)
        except exception.ImageNotUsable as exc:
            return exc
        return None
