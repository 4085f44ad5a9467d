# SPDX-License-Identifier: Apache-2.0
"""Detect images that cannot be booted, by their formats in Glance.

Nova's libvirt driver ignores ``container_format``: it treats any bytes as a disk of the
``disk_format``. So an archive becomes a disk that does not boot.
"""

from nova_precache import model

# No driver of Nova unpacks these.
_PACKED = frozenset({'compressed', 'docker'})
# Glance requires both formats of such an image to be the same.
_PARTS = {'aki': 'a kernel', 'ari': 'a ramdisk'}


def why_unbootable(image: model.Image) -> str | None:
    """Return why no driver boots from an image, or None; the text follows the image's id."""
    if image.container_format in _PACKED:
        return f'has container_format {image.container_format}: no instance can boot from it'
    return None


def why_no_root_disk(image: model.Image) -> str | None:
    """Return why libvirt boots no instance from an image as its root disk, or None.

    Only the VMware driver extracts the disk of an OVA. A kernel and a ramdisk are cached with
    the images that name them.
    """
    if image.container_format == 'ova':
        return 'has container_format ova: libvirt does not extract disks from archives'
    for found in (image.container_format, image.disk_format):
        if found in _PARTS:
            return f'has the format {found}: {_PARTS[found]} is not a root disk'
    return why_unbootable(image)
