# SPDX-License-Identifier: Apache-2.0
"""[libvirt]: the options of Nova's libvirt driver that affect the cache."""

from oslo_config import cfg

GROUP = cfg.OptGroup('libvirt', title='The libvirt driver')

OPTIONS = [
    cfg.StrOpt(
        'images_type',
        default='default',
        choices=['default', 'raw', 'flat', 'qcow2', 'lvm', 'rbd', 'ploop'],
        help="""
Image backend of instances, as in Nova. ``default`` is qcow2 or flat, depending
on ``use_cow_images``; lvm, rbd and ploop keep no image cache.
""",
    ),
]
