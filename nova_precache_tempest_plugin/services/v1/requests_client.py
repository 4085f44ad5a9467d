# SPDX-License-Identifier: Apache-2.0
"""Requests, their tasks and their estimates."""

import time
from collections.abc import Container
from typing import Any

from tempest.lib import exceptions
from tempest.lib.common import rest_client

from nova_precache_tempest_plugin.services.v1 import base_client

ENDED = ('completed', 'partial', 'failed', 'cancelled', 'expired')


class RequestsClient(base_client.PrecacheClient):
    """Makes, follows and steers requests."""

    def create_request(self, **request: object) -> rest_client.ResponseBody:
        return self.ask('POST', 'requests', 202, {'request': request})

    def list_requests(self, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', 'requests', 200, **query)

    def show_request(self, request_id: str) -> rest_client.ResponseBody:
        return self.ask('GET', f'requests/{request_id}', 200)

    def list_tasks(self, request_id: str, **query: object) -> rest_client.ResponseBody:
        return self.ask('GET', f'requests/{request_id}/tasks', 200, **query)

    def act(self, request_id: str, action: str, how: object = None) -> rest_client.ResponseBody:
        """Cancel, pause, resume or retry a request."""
        return self.ask('POST', f'requests/{request_id}/action', 202, {action: how})

    def estimate(self, **request: object) -> rest_client.ResponseBody:
        return self.ask('POST', 'estimate', 200, {'request': request})

    def wait_for(self, request_id: str, statuses: Container[str] = ENDED) -> dict[str, Any]:
        """Wait until a request has one of some statuses, unless said a final one, and give it.

        :raises tempest.lib.exceptions.TimeoutException: it is not, within the build timeout
        """
        end = time.monotonic() + self.build_timeout
        while (request := self.show_request(request_id)['request'])['status'] not in statuses:
            if time.monotonic() > end:
                raise exceptions.TimeoutException(f'Request {request_id}: {request}')
            time.sleep(self.build_interval)
        return dict(request)
