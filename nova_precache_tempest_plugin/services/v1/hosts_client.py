# SPDX-License-Identifier: Apache-2.0
"""Hosts, what is in their caches, and which of them have an image."""

from tempest.lib.common import rest_client

from nova_precache_tempest_plugin.services.v1 import base_client


class HostsClient(base_client.PrecacheClient):
    """Looks; nothing here can be changed."""

    def list_hosts(self, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', 'hosts', 200, **query)

    def show_host(self, host: str) -> rest_client.ResponseBody:
        return self.ask('GET', f'hosts/{host}', 200)

    def list_host_images(self, host: str, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', f'hosts/{host}/images', 200, **query)

    def list_image_hosts(self, image_id: str, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', f'images/{image_id}/hosts', 200, **query)
