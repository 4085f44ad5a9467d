# SPDX-License-Identifier: Apache-2.0
"""Virt drivers: what a kind of hypervisor does to have an image cached."""
