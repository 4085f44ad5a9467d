# SPDX-License-Identifier: Apache-2.0
"""Resolve names of images to ids by the image service.

The pre-caching service itself resolves aggregates, hosts and pins.
"""

from collections.abc import Iterable
from typing import Any

from openstack import exceptions
from oslo_utils import uuidutils


class NameNotFound(Exception):
    """No image has this name, or several images have it."""


def image_ids(app: Any, names: Iterable[str]) -> list[str]:
    """Return an id for each name, as :func:`image_id`; raises for the first that has none."""
    return [image_id(app, name) for name in names]


def image_id(app: Any, name: str) -> str:
    """Return the id of an image; a name that looks like an id is used unchanged.

    So commands also work for an image that was deleted from the image service.

    :raises NameNotFound: the name is unknown or ambiguous
    """
    if uuidutils.is_uuid_like(name):
        return name
    try:
        found = app.client_manager.sdk_connection.image.find_image(name)
    except exceptions.DuplicateResource:
        raise NameNotFound(f'More than one image is named {name}: use an ID.') from None
    if found is None:
        raise NameNotFound(f'No image has the name or ID {name}.')
    return str(found.id)
