# SPDX-License-Identifier: Apache-2.0
"""What the service says of itself."""

from tempest.lib.common import rest_client

from nova_precache_tempest_plugin.services.v1 import base_client


class DocumentsClient(base_client.PrecacheClient):
    """Reads the documents of /v1, of which only one is described by the other."""

    def show_openapi(self) -> rest_client.ResponseBody:
        return self.ask('GET', 'openapi.json', 200)

    def show_version(self) -> rest_client.ResponseBody:
        return self.ask('GET', '', 200)
