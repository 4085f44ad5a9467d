# SPDX-License-Identifier: Apache-2.0
"""Checks whether an image may be cached for a project, using the service's credentials.

The caller's own token is used when a request is created, and is not stored. At planning, at
each retry and before a compute publishes the image, access is decided by owner, visibility
and members, as Glance 33 decides it by its database and its default policy:

- an admin may use every image, and every caller an image that is public or community;
- a shared image is visible to its owner and its members, whatever their member status; without
  an owner, to every project;
- a private image is visible to its owner; without an owner, only to callers without a project.

``os_hidden`` only hides an image from lists.
"""

from collections.abc import Iterable

from nova_precache import exception, model
from nova_precache.conductor import planner
from nova_precache.image import bootable, companions, service

_OPEN_TO_ALL = ('public', 'community')


def check_all(
    images: service.ImageService,
    image_ids: Iterable[str],
    project_id: str | None,
    is_admin: bool,
) -> dict[str, planner.ImageFacts]:
    """Check each image as :func:`check_bootable`, and return the results by id.

    :raises nova_precache.exception.ImageServiceUnavailable: no answer
    """
    found: dict[str, planner.ImageFacts] = {}
    for image_id in image_ids:
        try:
            image = check_bootable(images, image_id, project_id, is_admin)
            found[image_id] = planner.ImageFacts(image)
        except exception.ImageNotUsable as exc:
            found[image_id] = planner.ImageFacts(refused=str(exc))
    return found


def check_bootable(
    images: service.ImageService, image_id: str, project_id: str | None, is_admin: bool
) -> model.Image:
    """Return the image with its kernel and ramdisk, if the project may use all of them.

    Nova, too, looks them up with the user's token. Raises as :func:`check`.
    """

    def usable(each_id: str) -> model.Image:
        return check(images, each_id, project_id, is_admin)

    return companions.look_up(usable(image_id), usable)


def check(
    images: service.ImageService, image_id: str, project_id: str | None, is_admin: bool
) -> model.Image:
    """Return the image if the project may use it.

    :raises nova_precache.exception.ImageNotUsable: it may not, with the reason
    :raises nova_precache.exception.ImageServiceUnavailable: no answer
    """
    image = images.show(image_id)
    if image.status != 'active':
        raise exception.ImageNotUsable(image_id, f'is {image.status}, not active')
    if not (is_admin or _is_visible(images, image, project_id)):
        raise exception.ImageNotUsable(image_id, f'is not visible to project {project_id}')
    why = bootable.why_unbootable(image)
    if why is not None:
        raise exception.ImageNotUsable(image_id, why)
    return image


def _is_visible(images: service.ImageService, image: model.Image, project_id: str | None) -> bool:
    if image.visibility in _OPEN_TO_ALL or image.owner == project_id:
        return True
    if image.visibility != 'shared':
        return False
    return image.owner is None or (
        project_id is not None and images.is_member(image.id, project_id)
    )
