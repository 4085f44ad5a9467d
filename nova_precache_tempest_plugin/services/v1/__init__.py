# SPDX-License-Identifier: Apache-2.0
"""The clients of /v1, a class for each kind of resource."""

from nova_precache_tempest_plugin.services.v1.documents_client import DocumentsClient
from nova_precache_tempest_plugin.services.v1.hosts_client import HostsClient
from nova_precache_tempest_plugin.services.v1.pins_client import PinsClient
from nova_precache_tempest_plugin.services.v1.requests_client import RequestsClient

__all__ = ['DocumentsClient', 'HostsClient', 'PinsClient', 'RequestsClient']
