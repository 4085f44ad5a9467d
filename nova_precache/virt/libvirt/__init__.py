# SPDX-License-Identifier: Apache-2.0
"""The libvirt driver: images as files, in the cache that Nova's driver boots from."""

from nova_precache.virt.libvirt.driver import LibvirtDriver

__all__ = ['LibvirtDriver']
