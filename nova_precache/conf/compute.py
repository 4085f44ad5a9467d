# SPDX-License-Identifier: Apache-2.0
"""[DEFAULT]: the options of a compute, with Nova's names and defaults."""

from oslo_config import cfg

GROUP = None

OPTIONS = [
    cfg.StrOpt(
        'compute_driver',
        default='libvirt.LibvirtDriver',
        help="""
Virt driver to load, as a module and class below ``nova_precache.virt``:
``libvirt.LibvirtDriver``, ``fake.FakeDriver`` (caches nothing) or
``fake.FakeDriverWithCaching``.
""",
    ),
    cfg.StrOpt(
        'instances_path',
        default='$state_path/instances',
        help='Directory of instances and of the image cache. Beside Nova, use the directory of '
        'nova-compute.',
    ),
    cfg.BoolOpt(
        'force_raw_images',
        default=True,
        help='Convert images of other formats to raw when they are cached.',
    ),
    cfg.BoolOpt(
        'use_cow_images',
        default=True,
        help='Create root disks as qcow2 overlays if [libvirt] images_type is default.',
    ),
]
