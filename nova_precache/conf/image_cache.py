# SPDX-License-Identifier: Apache-2.0
"""[image_cache]: what is cached, how much of it at once, and for how long."""

from oslo_config import cfg

GROUP = cfg.OptGroup('image_cache', title='The image cache')

OPTIONS = [
    cfg.IntOpt(
        'precache_concurrency',
        default=1,
        min=1,
        help='Hosts that download at once, over all requests and all conductors.',
    ),
    cfg.IntOpt(
        'precache_max_attempts',
        default=5,
        min=1,
        help='Times that one image is tried on one host when the error is one that can pass.',
    ),
    cfg.FloatOpt(
        'retry_delay_seconds',
        default=10,
        min=0,
        help='Seconds before the second attempt; each later one waits twice as long.',
    ),
    cfg.FloatOpt(
        'retry_max_delay_seconds',
        default=600,
        min=0,
        help='Most seconds between two attempts.',
    ),
    cfg.IntOpt(
        'max_images_per_request',
        default=32,
        min=1,
        help='Images that one request may name.',
    ),
    cfg.IntOpt(
        'max_tasks_per_request',
        default=200000,
        min=1,
        help='Tasks (hosts times images) that one request may have.',
    ),
    cfg.IntOpt(
        'max_active_requests_per_project',
        default=100,
        min=1,
        help='Requests of one project that may be unfinished at a time.',
    ),
    cfg.IntOpt(
        'request_retention_days',
        default=30,
        min=1,
        help='Days for which an ended request can be looked up.',
    ),
    cfg.StrOpt(
        'subdirectory_name',
        default='_base',
        deprecated_name='image_cache_subdirectory_name',
        deprecated_group='DEFAULT',
        help='Directory of the cache below ``instances_path``.',
    ),
    cfg.IntOpt(
        'manager_interval',
        default=2400,
        min=-1,
        deprecated_name='image_cache_manager_interval',
        deprecated_group='DEFAULT',
        help="""
Seconds between two rounds in which a compute looks for unused images. As in
Nova, 0 means every 60 seconds and -1 never.
""",
    ),
    cfg.BoolOpt(
        'remove_unused_base_images',
        default=True,
        deprecated_group='DEFAULT',
        help="""
Remove images that no disk is based on, once they are old enough. Unless it
is set, a compute leaves this to a nova-compute with the same instances_path.
""",
    ),
    cfg.IntOpt(
        'remove_unused_original_minimum_age_seconds',
        default=24 * 3600,
        deprecated_group='DEFAULT',
        help='Seconds since its last use for which an unused image stays.',
    ),
    cfg.IntOpt(
        'remove_unused_resized_minimum_age_seconds',
        default=3600,
        deprecated_group='libvirt',
        help='The same for images that an old Nova resized, ``<sha1>_<size>``.',
    ),
    cfg.IntOpt(
        'reserved_disk_bytes',
        default=1024**3,
        min=0,
        help='Bytes of the file system that a download leaves free.',
    ),
    cfg.BoolOpt(
        'allow_unverified_images',
        default=False,
        help='Cache images for which the image service knows no hash.',
    ),
    cfg.IntOpt(
        'convert_address_space_bytes',
        default=4 * 1024**3,
        min=1024**2,
        help='Address space that qemu-img may use.',
    ),
    cfg.IntOpt(
        'convert_cpu_seconds',
        default=1800,
        min=1,
        help='CPU time that qemu-img may use to convert an image.',
    ),
    cfg.IntOpt(
        'inspect_cpu_seconds',
        default=30,
        min=1,
        help='CPU time that qemu-img may use to look at an image.',
    ),
    cfg.ListOpt(
        'vmdk_allowed_types',
        default=['streamOptimized', 'monolithicSparse'],
        help="""
VMDK create types that are accepted, as Nova's ``[compute] vmdk_allowed_types``.
Those that name extents as files of the host are refused whatever this says.
""",
    ),
]
