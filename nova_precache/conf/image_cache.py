# SPDX-License-Identifier: Apache-2.0
"""[image_cache]: what is cached, how much of it at once, and for how long."""

from oslo_config import cfg

GROUP = cfg.OptGroup('image_cache', title='The image cache')

AGENT = 'agent'
NOVA = 'nova'

OPTIONS = [
    cfg.StrOpt(
        'compute_backend',
        default=AGENT,
        choices=[
            (AGENT, "this service's own compute, ``nova-precache-compute``, on each host"),
            (NOVA, 'the existing nova-compute; no process of this service runs on the hosts'),
        ],
        help="""
Service that caches images on the compute hosts; read by conductors and the API.
With ``nova``, conductors call nova-compute through Nova's own RPC API on the
brokers of the cells, and read from the databases of the cells whether it is
alive. nova-compute reports neither progress nor inventory, and its work cannot
be stopped or slowed down.
""",
    ),
    cfg.IntOpt(
        'precache_concurrency',
        mutable=True,
        default=1,
        min=1,
        help='Number of hosts that download concurrently, over all requests and all conductors.',
    ),
    cfg.IntOpt(
        'precache_max_attempts',
        mutable=True,
        default=5,
        min=1,
        help='Number of attempts for one image on one host if the errors are transient.',
    ),
    cfg.FloatOpt(
        'retry_delay_seconds',
        mutable=True,
        default=10,
        min=0,
        help='Seconds before the second attempt; the delay doubles before each later one.',
    ),
    cfg.FloatOpt(
        'retry_max_delay_seconds',
        mutable=True,
        default=600,
        min=0,
        help='Maximum number of seconds between two attempts.',
    ),
    cfg.IntOpt(
        'max_images_per_request',
        default=32,
        min=1,
        help='Maximum number of images in one request.',
    ),
    cfg.IntOpt(
        'max_tasks_per_request',
        default=200000,
        min=1,
        help='Maximum number of tasks (hosts times images) of one request.',
    ),
    cfg.IntOpt(
        'max_active_requests_per_project',
        default=100,
        min=1,
        help='Maximum number of unfinished requests of one project.',
    ),
    cfg.IntOpt(
        'request_retention_days',
        mutable=True,
        default=30,
        min=1,
        help='Days for which an ended request is kept.',
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
Seconds between two rounds in which a compute removes unused images and expired
partial downloads. As in Nova, 0 means every 60 seconds and -1 disables the
removal of unused images; expired partial downloads are then removed every 2400
seconds.
""",
    ),
    cfg.BoolOpt(
        'remove_unused_base_images',
        default=True,
        deprecated_group='DEFAULT',
        help="""
Remove images that no disk is based on, once they are old enough. If disabled, a
compute leaves this to a nova-compute with the same instances_path.
""",
    ),
    cfg.IntOpt(
        'remove_unused_original_minimum_age_seconds',
        mutable=True,
        default=24 * 3600,
        deprecated_group='DEFAULT',
        help='Seconds for which an unused image is kept after its last use.',
    ),
    cfg.IntOpt(
        'remove_unused_resized_minimum_age_seconds',
        mutable=True,
        default=3600,
        deprecated_group='libvirt',
        help='The same for images that an old Nova resized, ``<sha1>_<size>``.',
    ),
    cfg.IntOpt(
        'reserved_disk_bytes',
        default=1024**3,
        min=0,
        help='Bytes of the file system that downloads keep free.',
    ),
    cfg.IntOpt(
        'max_rate_bytes',
        mutable=True,
        default=0,
        min=0,
        help="""
Maximum total rate of the precaching downloads of a host, in bytes per second; 0
means no limit. A download that a boot waits for is not limited.
""",
    ),
    cfg.IntOpt(
        'min_rate_bytes',
        mutable=True,
        default=32 * 1024,
        min=0,
        help="""
Lowest rate of a precaching download, in bytes per second; read by computes. A
download that is slower over ``stall_seconds`` is stopped: its bytes are kept,
the host gives its slot back, and the download is resumed after
``retry_max_delay_seconds``, or at once if no other host waits for the slot. This
does not count as an attempt if bytes have arrived. Only the time counts in
which the download waits for the image service: not its turn on the host, lower
limits of its own rate, locks, checks or disks. A download that a boot waits for
or starts is never stopped. Set it below the rate of the thinnest link; 0 turns
it off. With ``compute_backend = nova`` it has no effect: nova-compute cannot be
stopped.
""",
    ),
    cfg.IntOpt(
        'stall_seconds',
        mutable=True,
        default=60,
        min=1,
        help="""
Seconds over which the rate of a download is compared with ``min_rate_bytes``,
and after which a download without any byte is stopped; read by computes, and
ignored if ``min_rate_bytes`` is 0.
""",
    ),
    cfg.IntOpt(
        'max_parallel_downloads',
        mutable=True,
        default=1,
        min=1,
        help="""
Maximum number of concurrent precaching downloads of a host; the others wait.
The limit does not apply to a download that a boot waits for or starts.
""",
    ),
    cfg.IntOpt(
        'yield_share_percent',
        mutable=True,
        default=25,
        min=1,
        max=100,
        help="""
Percentage to which the precaching downloads of a host slow down while a boot
through this service, in any process, waits for the download of another image.
It applies to the rate that the host reached before, or to ``max_rate_bytes`` if
that is lower. 100 does not slow them down. A boot through Nova is only detected
if it waits for the same image.
""",
    ),
    cfg.BoolOpt(
        'idle_priority',
        default=True,
        help="""
Write and convert images for precaching with idle disk and CPU priority, until a
boot waits for them.
""",
    ),
    cfg.IntOpt(
        'inventory_interval_seconds',
        default=600,
        min=10,
        help="""
Seconds between two full reports of a compute to the conductors, with every
image in its cache and the number of disks based on it. Changes in between are
reported after ``[DEFAULT] report_interval``, or as soon as a transfer has
ended.
""",
    ),
    cfg.IntOpt(
        'partial_max_age_seconds',
        default=24 * 3600,
        min=0,
        help="""
Seconds for which the partial file of an interrupted download is kept after its
last byte, so that a later attempt, request or boot can resume it. The first
round after that (see ``manager_interval``) or the start of the compute removes
it, even if nova-compute removes the unused images. 0 keeps it until the next
round only. The partial file of a download that will not be retried is removed
at once. Partial files count as used space.
""",
    ),
    cfg.IntOpt(
        'max_virtual_size_bytes',
        default=0,
        min=0,
        help='Maximum virtual size of the disk in an image, in bytes, regardless of the size of '
        'the file; 0 means no limit.',
    ),
    cfg.BoolOpt(
        'allow_unverified_images',
        default=False,
        help='Cache images for which the image service has no hash.',
    ),
    cfg.IntOpt(
        'convert_address_space_bytes',
        default=4 * 1024**3,
        min=1024**2,
        help='Maximum address space of qemu-img, in bytes.',
    ),
    cfg.IntOpt(
        'convert_cpu_seconds',
        default=1800,
        min=1,
        help="""
Maximum CPU time of qemu-img to convert an image, in seconds. If four times as
much wall-clock time has passed, qemu-img is ended and the conversion is
retried.
""",
    ),
    cfg.IntOpt(
        'inspect_cpu_seconds',
        default=30,
        min=1,
        help='Maximum CPU time of qemu-img to inspect an image, in seconds.',
    ),
    cfg.ListOpt(
        'vmdk_allowed_types',
        default=['streamOptimized', 'monolithicSparse'],
        help="""
VMDK create types to accept, as in Nova's ``[compute] vmdk_allowed_types``.
Types that name files of the host as extents are always refused.
""",
    ),
]
