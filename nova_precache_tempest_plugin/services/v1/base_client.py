# SPDX-License-Identifier: Apache-2.0
"""What the clients of /v1 share: the microversion, and the contract of every answer."""

import json
import urllib.parse
from typing import Any

from tempest.lib.common import rest_client

from nova_precache_tempest_plugin.services.contract import Contract

VERSION_HEADER = 'OpenStack-API-Version'
# The name in the header, whatever the catalog calls the service.
SERVICE_TYPE = 'image-precache'


class PrecacheClient(rest_client.RestClient):
    """A client whose answers are held against a contract, once it has been given one."""

    contract: Contract | None = None
    api_microversion = '1.0'

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # A redirect would be followed with the token, to whatever host.
        super().__init__(*arguments, **{**named, 'follow_redirects': False})

    def get_headers(self, *arguments: Any, **named: Any) -> dict[str, str]:
        headers = super().get_headers(*arguments, **named)
        return {**headers, VERSION_HEADER: f'{SERVICE_TYPE} {self.api_microversion}'}

    def raw_request(self, url: str, method: str, *arguments: Any, **named: Any) -> Any:
        """Send a request; this is where refusals come by before they are raised."""
        answer, body = super().raw_request(url, method, *arguments, **named)
        if self.contract is not None:
            self.contract.check(method, url, answer.status, answer, body.decode())
        return answer, body

    def ask(
        self, method: str, path: str, status: int, /, body: object = None, **query: object
    ) -> rest_client.ResponseBody:
        """Send a request that is to be answered with a status, and give what was answered."""
        url = f'{path}?{urllib.parse.urlencode(query)}' if query else path
        sent = None if body is None else json.dumps(body)
        answer, data = self.request(method, url, body=sent)
        self.expected_success(status, answer.status)
        return rest_client.ResponseBody(answer, json.loads(data) if data else {})
