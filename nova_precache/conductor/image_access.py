# SPDX-License-Identifier: Apache-2.0
"""Whether an image may be cached for a project, asked with the service's credentials.

The caller's own token was used while the request was made, and is not kept. At planning, at
each retry and before a compute publishes the image, the same is decided by owner, visibility
and members, as Glance 33 decides it by its database and its default policy:

- an admin may have every image, and every caller one that is public or community;
- a shared image is for its owner and its members, whatever these have answered; one without
  owner is for every project;
- a private image is for its owner; one without owner is for callers without project alone.

``os_hidden`` only keeps an image out of lists.
"""

from nova_precache import exception, model
from nova_precache.image import bootable, companions, service

_OPEN_TO_ALL = ('public', 'community')


def check_bootable(
    images: service.ImageService, image_id: str, project_id: str | None, is_admin: bool
) -> model.Image:
    """Return the image with its kernel and ramdisk, if the project may use all of them.

    Nova looks them up with the token of the user, too; raises as :func:`check`.
    """

    def usable(each_id: str) -> model.Image:
        return check(images, each_id, project_id, is_admin)

    return companions.look_up(usable(image_id), usable)


def check(
    images: service.ImageService, image_id: str, project_id: str | None, is_admin: bool
) -> model.Image:
    """Give the image if the project may use it.

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
