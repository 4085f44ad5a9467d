# SPDX-License-Identifier: Apache-2.0
"""Resolve names to ids: of images by the image service, of cells and projects.

The pre-caching service itself resolves aggregates, hosts and pins.
"""

from collections.abc import Iterable
from typing import Any

from keystoneauth1 import exceptions as keystone
from openstack import exceptions
from oslo_utils import uuidutils

from nova_precache.osc import client


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


def cell_id(app: Any, name: str | None) -> str | None:
    """Return the UUID of a cell; a name that looks like a UUID is used unchanged.

    :raises NameNotFound: no cell has this name, or several have it
    """
    if name is None or uuidutils.is_uuid_like(name):
        return name
    cells = client.of(app).get('cells')['cells']
    found = [str(cell['id']) for cell in cells if cell['name'] == name]
    if not found:
        raise NameNotFound(f'--cell: no cell has the name or UUID {name}.')
    if len(found) > 1:
        raise NameNotFound(f'--cell: several cells are named {name}: {", ".join(found)}')
    return found[0]


def project_id(app: Any, name: str | None) -> str | None:
    """Return the id of a project, by Keystone; without it, the name is used as an id.

    :raises NameNotFound: the name is unknown or ambiguous
    """
    if name is None or uuidutils.is_uuid_like(name):
        return name
    try:
        found = app.client_manager.sdk_connection.identity.find_project(name)
    except exceptions.DuplicateResource:
        raise NameNotFound(f'--project: several projects are named {name}: use an ID.') from None
    except (exceptions.SDKException, keystone.ClientException):
        return name
    if found is None:
        raise NameNotFound(f'--project: no project has the name or ID {name}.')
    return str(found.id)
