# SPDX-License-Identifier: Apache-2.0
"""Download bytes from a source to a verified file.

``engine`` downloads from a ``source`` to a ``target``: the stages of ``pipeline`` hash and write
the bytes, ``verifier`` compares the hash, ``retry`` reopens a cut connection, ``rate_limit``
has the limits of the host, and ``stall`` detects a source that sends too slowly.
"""
