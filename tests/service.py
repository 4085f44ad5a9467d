# SPDX-License-Identifier: Apache-2.0
"""A running service as its users see it: requests, and their results."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import requests

from nova_precache import model
from tests.leaks import SECRETS
from tools.waiting import TIMEOUT_SECONDS, wait_until

LATEST = {'OpenStack-API-Version': 'compute 2.81', 'X-Auth-Token': 'admin'}


def _looked_at(answer: requests.Response) -> requests.Response:
    asked = f'{answer.request.method} {answer.request.path_url}'
    SECRETS.look_into(f'{answer.headers}{answer.text}', f'the answer to {asked}')
    return answer


@dataclasses.dataclass(frozen=True)
class Host:
    """A compute host of the running service."""

    name: str
    cell: str
    instances_path: str

    def base_path(self, image_id: str) -> pathlib.Path:
        return self.base_directory / hashlib.sha1(image_id.encode()).hexdigest()  # noqa: S324

    @property
    def base_directory(self) -> pathlib.Path:
        return pathlib.Path(self.instances_path) / '_base'

    def base_files(self) -> list[str]:
        """Name everything in the cache directory."""
        return sorted(path.name for path in self.base_directory.iterdir())


@dataclasses.dataclass(frozen=True)
class Service:
    """The two doors of a running service."""

    compute_url: str
    precache_url: str
    hosts: tuple[Host, ...]

    def post(self, path: str, body: Any) -> requests.Response:
        return _looked_at(
            requests.post(
                self.compute_url + path, json=body, headers=LATEST, timeout=TIMEOUT_SECONDS
            )
        )

    def delete(self, path: str) -> requests.Response:
        return _looked_at(
            requests.delete(self.compute_url + path, headers=LATEST, timeout=TIMEOUT_SECONDS)
        )

    def get(self, path: str) -> dict[str, Any]:
        answer = _looked_at(requests.get(self.precache_url + path, timeout=TIMEOUT_SECONDS))
        answer.raise_for_status()
        return dict(answer.json())

    def aggregate(self, name: str, hosts: tuple[Host, ...] | None = None) -> int:
        """Make an aggregate of some hosts, all unless said."""
        answer = self.post('/os-aggregates', {'aggregate': {'name': name}})
        answer.raise_for_status()
        aggregate_id = int(answer.json()['aggregate']['id'])
        for host in self.hosts if hosts is None else hosts:
            added = self.post(
                f'/os-aggregates/{aggregate_id}/action', {'add_host': {'host': host.name}}
            )
            added.raise_for_status()
        return aggregate_id

    def ask(self, aggregate_id: int, *image_ids: str) -> requests.Response:
        """Ask for images in Nova's way."""
        body = {'cache': [{'id': image_id} for image_id in image_ids]}
        return self.post(f'/os-aggregates/{aggregate_id}/images', body)

    def cache(self, aggregate_id: int, *image_ids: str) -> str:
        """Ask for images and give the id of the request."""
        answer = self.ask(aggregate_id, *image_ids)
        assert answer.status_code == 202, answer.text
        return answer.headers['Location'].rsplit('/', 1)[1]

    def request(self, request_id: str) -> dict[str, Any]:
        return dict(self.get(f'/requests/{request_id}')['request'])

    def tasks(self, request_id: str) -> list[dict[str, Any]]:
        return list(self.get(f'/requests/{request_id}/tasks')['tasks'])

    def age_seconds(self, image_id: str) -> float:
        """Return the age of an image's oldest file, by the hosts' last reports; 0 without one."""
        told = self.get(f'/images/{image_id}/hosts')['hosts']
        return max((float(each['age_seconds']) for each in told), default=0)

    def wait(self, request_id: str, timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        """Wait until a request has ended, and give it."""

        def ended() -> dict[str, Any] | None:
            request = self.request(request_id)
            return None if request['status'] in model.REQUEST_ACTIVE else request

        found = wait_until(ended, f'request {request_id} ended', timeout_seconds)
        return dict(found)

    def outcomes(self, request_id: str) -> set[tuple[str, str | None]]:
        """Return the distinct (status, reason) of a request's tasks."""
        return {(task['status'], task['reason']) for task in self.tasks(request_id)}
