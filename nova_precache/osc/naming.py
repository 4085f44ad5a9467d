# SPDX-License-Identifier: Apache-2.0
"""Names of images for tables, from the image service: the service knows only their ids."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import requests
from keystoneauth1 import exceptions as keystone
from openstack import exceptions

from nova_precache import reasons
from nova_precache.osc.client import Json
from nova_precache.osc.columns import Names

LOG = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60
# Ids in one URL, which servers limit to 8 KiB.
BATCH = 100
_UNAVAILABLE = (exceptions.SDKException, keystone.ClientException, requests.RequestException)


def image_names(app: Any, ids: Iterable[str]) -> Names:
    """Look up the names of images; those that are gone, or have no name, are missing."""
    images = _find(app, sorted(ids))
    return {each: str(image['name']) for each, image in images.items() if image['name']}


def find_image(app: Any, image_id: str) -> Json:
    """Look up an image; empty if it is gone."""
    return _find(app, [image_id]).get(image_id, {})


def _find(app: Any, ids: Sequence[str]) -> dict[str, Json]:
    """Return images by id.

    Without the image service there are none: the output then has the ids.
    """
    try:
        return _look_up(app, ids)
    except _UNAVAILABLE as error:
        said = reasons.clean(str(error).partition('\n')[0])
        LOG.info('Showing IDs of images: no names from the image service: %s', said)
        return {}


def _look_up(app: Any, ids: Sequence[str]) -> dict[str, Json]:
    """Ask for the images that are listed, then for the hidden ones among the others."""
    found: dict[str, Json] = {}
    for hidden in ('false', 'true'):
        missing = [each for each in ids if each not in found]
        for start in range(0, len(missing), BATCH):
            found |= _ask(app, missing[start : start + BATCH], hidden)
    return found


def _ask(app: Any, ids: Sequence[str], hidden: str) -> dict[str, Json]:
    query = {
        'id': f'in:{",".join(ids)}',
        'limit': len(ids),
        'visibility': 'all',
        'os_hidden': hidden,
    }
    answer = app.client_manager.sdk_connection.image.get(
        '/images', params=query, timeout=TIMEOUT_SECONDS
    )
    exceptions.raise_from_response(answer)
    images = answer.json()['images']
    return {str(each['id']): {**each, 'name': _clean(each.get('name'))} for each in images}


def _clean(name: Any) -> str | None:
    return None if name is None else reasons.clean(str(name))
