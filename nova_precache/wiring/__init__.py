# SPDX-License-Identifier: Apache-2.0
"""Build the object graphs; the only place that reads options and passes objects to each other.

``api``, ``conductor`` and ``compute`` build one service each, from ``common`` parts and the image
service of ``images``. ``computes`` chooses what a conductor calls: the computes of this service
(``agents``), or stock nova-computes (``stock``).
"""
