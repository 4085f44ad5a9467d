# SPDX-License-Identifier: Apache-2.0
"""Virt drivers: the image caching of each kind of hypervisor.

``driver`` is the base class and loads the configured one; ``libvirt`` and ``fake`` implement it.
"""
