# SPDX-License-Identifier: Apache-2.0
"""The whole service in one process, and the real servers beside it.

``service`` starts the parts; ``glance`` is a real Glance as a child ``process``, installed in
an ``environment`` of its own.
"""
