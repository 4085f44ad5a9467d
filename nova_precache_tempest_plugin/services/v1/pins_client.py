# SPDX-License-Identifier: Apache-2.0
"""Pins: images that are kept cached on the hosts of an aggregate."""

from tempest.lib.common import rest_client

from nova_precache_tempest_plugin.services.v1 import base_client


class PinsClient(base_client.PrecacheClient):
    """Makes pins and ends them."""

    def create_pin(self, **pin: object) -> rest_client.ResponseBody:
        return self.ask('POST', 'pins', 201, {'pin': pin})

    def list_pins(self, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', 'pins', 200, **query)

    def show_pin(self, pin_id: str) -> rest_client.ResponseBody:
        return self.ask('GET', f'pins/{pin_id}', 200)

    def delete_pin(self, pin_id: str) -> rest_client.ResponseBody:
        return self.ask('DELETE', f'pins/{pin_id}', 204)
