# SPDX-License-Identifier: Apache-2.0
"""The image service as this project needs it: metadata, access and bytes.

``service`` is the interface; ``glance`` implements it, with the bytes in ``connection`` and the
URLs in ``endpoints``; ``fake`` is the one of the tests. ``bootable`` and ``companions`` say
which images can be booted, and which kernel and ramdisk they need.
"""
