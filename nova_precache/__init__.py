# SPDX-License-Identifier: Apache-2.0
"""Image pre-caching for Nova's compute hosts: tracked, durable, bounded."""

from nova_precache import backend

backend.tell_oslo_service()
