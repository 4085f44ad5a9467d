# SPDX-License-Identifier: Apache-2.0
"""Resolve names to ids: of images by the image service, of cells and projects.

The pre-caching service itself resolves aggregates, hosts and pins.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from keystoneauth1 import exceptions as keystone
from openstack import exceptions
from oslo_utils import uuidutils

from nova_precache.osc import arguments, client

LISTED = 5
LONGEST = 255


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
        found = _find(app, name)
    except exceptions.DuplicateResource:
        ids = _ids(app.client_manager.sdk_connection.image.images(name=name))
        raise NameNotFound(f'{_typed(app)}: {_several("images", name, ids)}') from None
    except (exceptions.SDKException, keystone.ClientException) as error:
        raise NameNotFound(
            f'{_typed(app)}: {arguments.shown(name)} cannot be looked up: '
            f'{client.shorten(str(error))}'
        ) from None
    if found is None:
        raise NameNotFound(f'{_typed(app)}: no image has the name or ID {arguments.shown(name)}')
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
        raise NameNotFound(f'--cell: no cell has the name or UUID {arguments.shown(name)}')
    if len(found) > 1:
        raise NameNotFound(f'--cell: {_several("cells", name, found)}')
    return found[0]


def project_id(app: Any, name: str | None) -> str | None:
    """Return the id of a project, by Keystone; without it, the name is used as an id.

    :raises NameNotFound: the name is unknown or ambiguous
    """
    if name is None or uuidutils.is_uuid_like(name):
        return name
    try:
        identity = app.client_manager.sdk_connection.identity
        if not hasattr(identity, 'find_project'):  # no Keystone answers there, as in standalone
            return name
        found = identity.find_project(name)
    except exceptions.DuplicateResource:
        ids = _ids(app.client_manager.sdk_connection.identity.projects(name=name))
        raise NameNotFound(f'--project: {_several("projects", name, ids)}') from None
    except (exceptions.SDKException, keystone.ClientException):
        return name
    if found is None:
        raise NameNotFound(f'--project: no project has the name or ID {arguments.shown(name)}')
    return str(found.id)


def _find(app: Any, name: str) -> Any:
    if not 0 < len(name) <= LONGEST:
        return None
    return app.client_manager.sdk_connection.image.find_image(name)


def _typed(app: Any) -> str:
    """Return what the command calls an image."""
    return client.of(app).names.get('image', '<image>')


def _ids(found: Iterable[Any]) -> list[str]:
    return [str(each.id) for each in itertools.islice(found, LISTED + 1)]


def _several(kind: str, name: str, ids: Sequence[str]) -> str:
    """List the first things that share a name."""
    more = ' and more' if len(ids) > LISTED else ''
    return (
        f'several {kind} are named {arguments.shown(name)}: {", ".join(ids[:LISTED])}{more}; '
        'use an ID'
    )
