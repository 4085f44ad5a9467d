# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: images as files, in the cache that Nova's driver boots from.

``driver`` builds the cache and answers the compute; ``imagebackend`` creates root disks from it,
and ``usage`` finds the base files that instances use.
"""

from nova_precache.virt.libvirt.driver import LibvirtDriver

__all__ = ['LibvirtDriver']
