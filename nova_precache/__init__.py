# SPDX-License-Identifier: Apache-2.0
"""Image pre-caching for Nova's compute hosts: tracked, durable, bounded."""

import importlib.util

# Before any module imports oslo.messaging, which would let oslo.service choose eventlet. Where only
# the openstack client is installed there is neither.
if importlib.util.find_spec('oslo_service') is not None:
    from nova_precache import backend

    backend.tell_oslo_service()
