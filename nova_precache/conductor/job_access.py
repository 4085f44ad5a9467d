# SPDX-License-Identifier: Apache-2.0
"""Checks that the projects that requested an image may still use it while its job is in flight.

Access is checked when a request is created and when it is planned. It is checked again before
each retry, and before a compute publishes the image; the tasks of requests that lost access
end in error.
"""

from collections.abc import Mapping

from nova_precache import exception, model
from nova_precache.conductor import image_access, tracker
from nova_precache.db import jobs
from nova_precache.image import service


class JobAccess:
    """Access checks for the requests that share a job; thread-safe.

    :param images: the image service, called with this service's own credentials
    """

    def __init__(
        self, job_store: jobs.Jobs, images: service.ImageService, track: tracker.Tracker
    ) -> None:
        self._jobs = job_store
        self._images = images
        self._tracker = track

    def check(self, job_id: str, image_id: str) -> None:
        """End the tasks of a job whose requests may no longer use its image.

        :raises nova_precache.exception.ImageNotUsable: no remaining request may use the image
        :raises nova_precache.exception.ImageServiceUnavailable: no answer; no task was ended
        :raises nova_precache.exception.ImageUnauthorized: credentials refused; no task was ended
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
        for requester in self._jobs.askers(job_id):
            who = requester.project_id, requester.is_admin
            if who not in found:
                found[who] = self._refusal(image_id, *who)
            why = found[who]
            if why is not None:
                refused[requester.request_id] = why
        return refused

    def _refusal(
        self, image_id: str, project_id: str | None, is_admin: bool
    ) -> exception.ImageNotUsable | None:
        try:
            image_access.check_bootable(self._images, image_id, project_id, is_admin)
        except exception.ImageNotUsable as exc:
            return exc
        return None
