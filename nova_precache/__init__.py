# SPDX-License-Identifier: Apache-2.0
"""Image pre-caching for Nova's compute hosts: tracked, durable, bounded.

A request enters by ``api``, is recorded in ``db``, and planned and dispatched by ``conductor``.
It calls a ``compute``, whose ``virt`` driver brings the image into the ``cache``: ``image``,
``download`` and ``inspection``. ``cells`` has aggregates and hosts. ``rpc`` connects the services,
``wsgi`` serves HTTP, ``notifications`` sends events; ``conf`` has the options, ``policies`` the
rules of access. ``wiring`` builds the services and ``cmd`` runs them; ``standalone`` runs all in
one process, and ``osc`` is the command line client.
"""

import importlib.util

# Before any module imports oslo.messaging, which would let oslo.service choose eventlet. Where only
# the openstack client is installed there is neither.
if importlib.util.find_spec('oslo_service') is not None:
    from nova_precache import backend

    backend.tell_oslo_service()
