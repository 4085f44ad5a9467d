# SPDX-License-Identifier: Apache-2.0
"""Which images no instance boots from, as their formats in Glance say.

Nova's libvirt driver does not look at ``container_format``: it takes any bytes for a disk of the
``disk_format``. So an archive becomes a disk that does not boot.
"""

from nova_precache import model

# Nova unpacks none of these, whatever the driver.
_PACKED = frozenset({'compressed', 'docker'})
# Glance wants both formats of such an image to be the same.
_PARTS = {'aki': 'a kernel', 'ari': 'a ramdisk'}


def why_unbootable(image: model.Image) -> str | None:
    """Return why no driver boots from an image, None where some may; reads after its id."""
    if image.container_format in _PACKED:
        return (
            f'has container_format {image.container_format}: no instance can be booted from it '
            'as it is'
        )
    return None


def why_no_root_disk(image: model.Image) -> str | None:
    """Return why libvirt boots no instance from an image as its root disk, None where it may.

    Of an OVA, the VMware driver takes the disk out. A kernel and a ramdisk come with the images
    that name them.
    """
    if image.container_format == 'ova':
        return 'has container_format ova: libvirt takes no disk out of an archive'
    for found in (image.container_format, image.disk_format):
        if found in _PARTS:
            return f'has the format {found}: {_PARTS[found]} is no root disk'
    return why_unbootable(image)
