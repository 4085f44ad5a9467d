# SPDX-License-Identifier: Apache-2.0
"""Whether an image may be cached for a project, asked with the service's credentials.

The caller's own token was used while the request was made, and is not kept. At
planning and at each retry the same is decided by owner, visibility and members.
"""

from nova_precache import exception, model
from nova_precache.image import companions, service

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
    return image


def _is_visible(images: service.ImageService, image: model.Image, project_id: str | None) -> bool:
    if image.visibility in _OPEN_TO_ALL or (project_id and image.owner == project_id):
        return True
    if image.visibility != 'shared' or not project_id:
        return False
    return images.is_member(image.id, project_id)
