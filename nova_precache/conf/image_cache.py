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
            (NOVA, 'the nova-compute that is there; nothing of this service runs on hosts'),
        ],
        help="""
What caches images on the compute hosts; conductors and API read it. A nova-compute is
called by Nova's own RPC API on the brokers of the cells, and whether it is alive is read
from the cells' databases. It tells no progress, and cannot be stopped, slowed down or
asked what it has.
""",
    ),
    cfg.IntOpt(
        'precache_concurrency',
        mutable=True,
        default=1,
        min=1,
        help='Hosts that download at once, over all requests and all conductors.',
    ),
    cfg.IntOpt(
        'precache_max_attempts',
        mutable=True,
        default=5,
        min=1,
        help='Times that one image is tried on one host when the error is one that can pass.',
    ),
    cfg.FloatOpt(
        'retry_delay_seconds',
        mutable=True,
        default=10,
        min=0,
        help='Seconds before the second attempt; each later one waits twice as long.',
    ),
    cfg.FloatOpt(
        'retry_max_delay_seconds',
        mutable=True,
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
        mutable=True,
        default=30,
        min=1,
        help='Days for which an ended request can be looked up.',
    ),
    cfg.IntOpt(
        'pin_hosts_per_round',
        mutable=True,
        default=10,
        min=1,
        help="""
Hosts that a pin asks for at most in one of its rounds, see ``[conductor]
pin_interval_seconds``, so that a rack that comes back does not storm the image service.
""",
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
Seconds between two rounds in which a compute looks for unused images, and for what
unfinished downloads left. As in Nova, 0 means every 60 seconds and -1 never; what
unfinished downloads left is then looked for every 2400 seconds all the same.
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
        mutable=True,
        default=24 * 3600,
        deprecated_group='DEFAULT',
        help='Seconds since its last use for which an unused image stays.',
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
        help='Bytes of the file system that a download leaves free.',
    ),
    cfg.IntOpt(
        'max_rate_bytes',
        mutable=True,
        default=0,
        min=0,
        help="""
Bytes a second that all precaching downloads of a host may take together; 0 sets
no limit. A download that a boot waits for is not limited.
""",
    ),
    cfg.IntOpt(
        'max_parallel_downloads',
        mutable=True,
        default=1,
        min=1,
        help="""
Precaching downloads of a host at a time; the others wait. One that a boot waits for
does not, and neither does the boot's own.
""",
    ),
    cfg.IntOpt(
        'yield_share_percent',
        mutable=True,
        default=25,
        min=1,
        max=100,
        help="""
While a boot through this service waits for the download of another image, in whatever
process, the precaching downloads of the host slow down to this share of the rate that
the host reached before, or of ``max_rate_bytes`` where that is less. 100 does not slow
them down. Of boots of Nova, only those are known that wait for the same image.
""",
    ),
    cfg.BoolOpt(
        'idle_priority',
        default=True,
        help="""
Write and convert images for precaching only when the disk and the CPUs have
nothing else to do, until a boot waits for them.
""",
    ),
    cfg.IntOpt(
        'inventory_interval_seconds',
        default=600,
        min=10,
        help="""
Seconds between two reports in which a compute tells the conductors of every image in its
cache, and of how many disks are based on each. What changes in between is reported after
``[DEFAULT] report_interval``, or as soon as a transfer has ended.
""",
    ),
    cfg.IntOpt(
        'partial_max_age_seconds',
        default=24 * 3600,
        min=0,
        help="""
Seconds since its last byte for which the unfinished file of a download that was
broken off stays, so that a later attempt, request or boot goes on from it. It is
removed by the first round after that, see ``manager_interval``, or at the start of
the compute, whoever else removes unused images. 0 keeps none for longer than that.
What ended for good is removed at once. It counts as space in use.
""",
    ),
    cfg.IntOpt(
        'max_virtual_size_bytes',
        default=0,
        min=0,
        help='Largest disk that an image may hold, however small its file; 0 sets no limit.',
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
        help="""
CPU time that qemu-img may use to convert an image. Where it has waited so long for the
CPUs and the disk that four times as much has passed, it is ended and tried again.
""",
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
