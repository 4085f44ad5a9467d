# SPDX-License-Identifier: Apache-2.0
"""The real servers that tests, tools and benchmarks start.

Each is a ``ServerProcess`` of ``nova_precache.standalone``, which has the Glance of standalone.
"""
