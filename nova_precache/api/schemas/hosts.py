# SPDX-License-Identifier: Apache-2.0
"""Hosts and the images in their caches: queries and answers."""

from nova_precache import model
from nova_precache.api.schemas import common

_STATUS = list(map(str, model.HostStatus))
_NAME = {'type': 'string', 'minLength': 1, 'maxLength': 255, 'format': 'text'}

INDEX = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.once(common.HOST),
        'status': common.once({'type': 'string', 'enum': _STATUS}),
        'cell': common.once(common.UUID),
    }
)
IMAGES = common.strict({'limit': common.LIMIT, 'marker': common.once(_NAME)})
IMAGE_HOSTS = common.strict({'limit': common.LIMIT, 'marker': common.once(common.HOST)})

HOST = common.whole(
    {
        'host': common.STRING,
        'cell': common.UUID,
        'status': {'type': 'string', 'enum': _STATUS},
        'reason': common.nullable(common.STRING),
        'seen_at': common.nullable(common.TIME),
        'version': common.nullable(common.STRING),
        'driver': common.nullable(common.STRING),
        'store_id': common.nullable(common.STRING),
        'cache_bytes': common.nullable(common.COUNT),
        'free_bytes': common.nullable(common.COUNT),
    }
)
_FILE = {
    'size_bytes': common.COUNT,
    'disk_bytes': common.COUNT,
    'touched_at': common.TIME,
    'age_seconds': common.COUNT,
    'used_by': common.nullable(common.COUNT),
}
HOST_IMAGE = common.whole(
    {
        'name': common.STRING,
        'image_id': common.nullable(common.UUID),
        **_FILE,
        'pinned': common.BOOLEAN,
    }
)
IMAGE_HOST = common.whole({'host': common.STRING, 'cell': common.nullable(common.UUID), **_FILE})
