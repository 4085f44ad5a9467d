# SPDX-License-Identifier: Apache-2.0
"""Virt drivers: the image caching of each kind of hypervisor."""
