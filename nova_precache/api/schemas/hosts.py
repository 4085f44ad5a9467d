# SPDX-License-Identifier: Apache-2.0
"""Hosts and the images in their caches: queries and answers."""

from nova_precache import model
from nova_precache.api.schemas import common
from nova_precache.api.schemas.common import described, nullable
from nova_precache.db import agents, caches

_STATUS: model.Json = {'type': 'string', 'enum': list(map(str, model.HostStatus))}

BY_HOST = {'host': described(common.HOST, 'The name of the host.')}
BY_HOST_IMAGE = {**BY_HOST, 'image_id': described(common.UUID, 'The id of the image.')}
BY_IMAGE = {'id': described(common.UUID, 'The id of the image.')}
SORT_KEYS = tuple(agents.HOSTS.keys)
SORT_IMAGES = tuple(caches.FILES_OF_HOST.keys)
SORT_IMAGE_HOSTS = tuple(caches.FILES_OF_IMAGE.keys)
INDEX = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.marker(common.HOST, 'name'),
        'sort': common.sort(SORT_KEYS),
        'aggregate': common.AGGREGATE_HOSTS,
        'status': common.once(described(_STATUS, 'Only hosts in this status.')),
        'cell': common.once(described(common.UUID, 'Only hosts of this cell.')),
    }
)
IMAGES = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.marker(common.NAME, 'name'),
        'sort': common.sort(SORT_IMAGES),
    }
)
IMAGE_HOSTS = common.strict(
    {
        'limit': common.LIMIT,
        'marker': common.marker(common.HOST, 'name'),
        'sort': common.sort(SORT_IMAGE_HOSTS),
        'aggregate': common.AGGREGATE_HOSTS,
    }
)

_REPORTED_STRING = nullable(common.STRING)
HOST = described(
    common.whole(
        {
            'host': common.HOST_NAME,
            'cell': described(common.UUID, 'The UUID of its cell.'),
            'cell_name': common.CELL_NAME,
            'status': described(
                _STATUS,
                '``unknown`` if it was silent while no conductor was connected to its cell '
                'or, with ``[image_cache] compute_backend = nova``, if the database of its '
                'cell does not answer.',
            ),
            'reason': described(_REPORTED_STRING, 'Why it is not up; null while it is.'),
            'seen_at': described(
                nullable(common.TIME), 'The time of the last report; null if unknown.'
            ),
            'version': described(
                _REPORTED_STRING, 'The release of its agent; null if not reported.'
            ),
            'driver': described(
                _REPORTED_STRING, 'Its virtualization driver; null if not reported.'
            ),
            'store_id': described(
                _REPORTED_STRING,
                'The id of its cache, which is the same for hosts that share one; null if not '
                'reported.',
            ),
            'cache_bytes': described(
                nullable(common.COUNT), 'Bytes that its cache occupies; null if not reported.'
            ),
            'free_bytes': common.FREE_BYTES,
        }
    ),
    'The host.',
)
_FILE = {
    'size_bytes': described(common.COUNT, 'The size of the file.'),
    'disk_bytes': described(common.COUNT, 'Bytes that the file occupies on the disk.'),
    'touched_at': described(
        common.TIME, 'When it was last used or requested, by the clock of the host.'
    ),
    'age_seconds': described(common.COUNT, 'Seconds since ``touched_at``.'),
    'used_by': described(
        nullable(common.COUNT), 'The number of disks based on it; null if unknown.'
    ),
}
HOST_IMAGE = described(
    common.whole(
        {
            'name': described(
                common.STRING, 'The name of the file, which is derived from the id of the image.'
            ),
            'image_id': described(
                nullable(common.UUID),
                'The id of the image; null if no request named it, and for callers who are not '
                'admins.',
            ),
            **_FILE,
            'pinned': described(common.BOOLEAN, 'Whether a pin keeps it on this host.'),
        }
    ),
    'The file of an image.',
)
IMAGE_HOST = described(
    common.whole(
        {
            'host': common.HOST_NAME,
            'cell': described(
                nullable(common.UUID), 'The UUID of its cell; null if it no longer reports.'
            ),
            'cell_name': common.CELL_NAME,
            **_FILE,
        }
    ),
    'A host that has the image.',
)
REMOVAL = described(
    common.whole(
        {
            'host': common.HOST_NAME,
            'image_id': described(common.UUID, 'The id of the image.'),
            'status': described(
                {'type': 'string', 'enum': list(map(str, model.RemovalStatus))},
                '``removed``; ``absent`` if the host does not have it; ``used`` if an instance, '
                'a boot, a transfer, a request or another image in the cache needs it; '
                '``pinned`` if a pin keeps it on the host. ``used`` and ``pinned`` images stay.',
            ),
            'reason': described(nullable(common.STRING), 'Why it stays; null if it does not.'),
            'freed_bytes': described(common.COUNT, 'Bytes that were freed on the disk.'),
        }
    ),
    'The result of the removal.',
)
