# SPDX-License-Identifier: Apache-2.0
"""Inspection of image files and their conversion to raw.

``formats`` inspects a whole file, ``watch`` its beginning while it arrives; both use ``content``
to recognise the format and ``headers`` to check it. ``convert`` makes it raw by ``qemu_img``,
which runs in ``sandbox``; ``pagecache`` decides how the conversion reads and writes.
"""
