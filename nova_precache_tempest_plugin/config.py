# SPDX-License-Identifier: Apache-2.0
"""What tempest.conf says of the service."""

from collections.abc import Sequence

from oslo_config import cfg

# As tempest turns the type of a service into the name of its options.
GROUP = cfg.OptGroup('image_precache', title='The service that caches images on compute hosts')

AVAILABLE = cfg.BoolOpt(
    'image_precache',
    default=True,
    help='Whether the service is there; without it, its tests are skipped.',
)

OPTIONS: Sequence[cfg.Opt] = (
    cfg.StrOpt(
        'catalog_type',
        default='image-precache',
        help='Type of the service in the catalog, for /v1; /v2.1 is [compute] catalog_type.',
    ),
    cfg.StrOpt(
        'region',
        default='',
        help='Region in the catalog; [identity] region where it is empty.',
    ),
    cfg.StrOpt(
        'endpoint_type',
        default='publicURL',
        choices=['public', 'admin', 'internal', 'publicURL', 'adminURL', 'internalURL'],
        help='Which endpoint of the catalog is used.',
    ),
    cfg.IntOpt(
        'build_timeout',
        default=300,
        min=1,
        help='Seconds to wait for a small image to be cached, and for hosts to tell of it.',
    ),
    cfg.FloatOpt(
        'build_interval',
        default=1,
        min=0.01,
        help='Seconds between two looks at what is waited for.',
    ),
    cfg.IntOpt(
        'max_images_per_request',
        default=32,
        min=1,
        help='What [image_cache] max_images_per_request of the service is.',
    ),
    cfg.StrOpt(
        'outsider_role',
        default='image_precache_outsider',
        help=(
            'A role to which no policy of the service gives anything. With dynamic credentials '
            'it is made where it is missing, and stays.'
        ),
    ),
)
