# SPDX-License-Identifier: Apache-2.0
"""What a handler is given, and what it gives back: no WSGI, no globals."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from oslo_config import cfg

from nova_precache import context as request_context
from nova_precache import exception, model, policy
from nova_precache.api import microversion
from nova_precache.cells import inventory
from nova_precache.db import requests
from nova_precache.image import service


class RequestStore(Protocol):
    """The requests, as far as the API needs them; ``db.requests.Requests`` is one."""

    def accept(self, new: requests.NewRequest) -> model.CacheRequest: ...

    def get(self, request_id: str, project_id: str | None = None) -> model.CacheRequest: ...

    def list(
        self,
        project_id: str | None = None,
        status: str | None = None,
        limit: int = 1000,
        marker: str | None = None,
    ) -> Sequence[model.CacheRequest]: ...

    def tasks(
        self, request_id: str, limit: int = 1000, marker: int | None = None
    ) -> Sequence[model.Task]: ...


class NoSuchResource(exception.NotFound):
    """Nothing is at this path, or not at this microversion."""

    def __init__(self) -> None:
        super().__init__('The resource could not be found.')


@dataclasses.dataclass(frozen=True)
class Services:
    """What the handlers act on.

    :param images_for: gives the image service as the caller may see it
    :param wake: tells the conductors that there is work; may fail
    """

    inventory: inventory.Inventory
    requests: RequestStore
    images_for: Callable[[request_context.RequestContext], service.ImageService]
    wake: Callable[[], None]
    enforcer: policy.Enforcer


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that handlers go by."""

    public_endpoint: str | None
    max_limit: int
    max_images_per_request: int

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'Settings':
        return cls(
            public_endpoint=conf.api.public_endpoint,
            max_limit=conf.api.max_limit,
            max_images_per_request=conf.image_cache.max_images_per_request,
        )


@dataclasses.dataclass(frozen=True)
class Call:
    """One request of the API, authenticated and routed.

    :param path: the variables of the path
    :param query: the values of each query parameter
    :param body: what the JSON says; None without a body
    :param base_url: URL of the root of the API, without a slash at its end
    """

    services: Services
    settings: Settings
    context: request_context.RequestContext
    version: microversion.Version
    path: Mapping[str, str]
    query: Mapping[str, Sequence[str]]
    body: Any
    base_url: str

    def require_version(self, major: int, minor: int) -> None:
        """Have the resource not exist before a microversion.

        :raises NoSuchResource: the caller asked for an older one
        """
        if self.version < microversion.Version(major, minor):
            raise NoSuchResource

    def authorize(self, rule: str, target: Mapping[str, Any] | None = None) -> None:
        """Apply a policy rule.

        :raises nova_precache.exception.PolicyNotAuthorized: the caller may not
        """
        self.services.enforcer.authorize(self.context, rule, target)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a handler answers; ``body`` None is an empty one."""

    status: int = 200
    body: model.Json | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


Handler = Callable[[Call], Reply]
