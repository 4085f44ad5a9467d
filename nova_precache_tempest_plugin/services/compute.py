# SPDX-License-Identifier: Apache-2.0
"""What the compute API does with the images of an aggregate."""

import json
from typing import Any

from tempest.lib.common import rest_client
from tempest.lib.services.compute import base_compute_client


class AggregateImagesClient(base_compute_client.BaseComputeClient):
    """Asks in Nova's way, at the microversion that tempest is set to."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # A redirect would be followed with the token, to whatever host.
        super().__init__(*arguments, **{**named, 'follow_redirects': False})

    def cache_images(self, aggregate_id: int, *image_ids: str) -> rest_client.ResponseBodyData:
        """Ask for images on the hosts of an aggregate."""
        return self.send(aggregate_id, {'cache': [{'id': image_id} for image_id in image_ids]})

    def send(self, aggregate_id: int | str, body: object) -> rest_client.ResponseBodyData:
        """Send any body."""
        answer, data = self.post(f'os-aggregates/{aggregate_id}/images', json.dumps(body))
        self.expected_success(202, answer.status)
        return rest_client.ResponseBodyData(answer, data)
