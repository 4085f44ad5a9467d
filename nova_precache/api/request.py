# SPDX-License-Identifier: Apache-2.0
"""The arguments and the result of a handler: no WSGI, no globals."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import microversion_parse
from oslo_config import cfg

from nova_precache import context as request_context, exception, model, policy
from nova_precache.cells import inventory, names
from nova_precache.conf import image_cache
from nova_precache.db import hearing, pages, pins, requests, statistics
from nova_precache.db.request import queries
from nova_precache.image import service


class RequestStore(Protocol):
    """The requests, as far as the API needs them; implemented by ``db.requests.Requests``."""

    def accept(self, new: requests.NewRequest) -> model.CacheRequest: ...

    def accepted(
        self, project_id: str | None, client_request_id: str
    ) -> model.CacheRequest | None: ...

    def get(self, request_id: str, project_id: str | None = None) -> model.CacheRequest: ...

    def outline(self, request_id: str, project_id: str | None = None) -> model.CacheRequest: ...

    def list(
        self,
        which: requests.RequestFilter,
        /,
        page: pages.Page,
    ) -> Sequence[model.CacheRequest]: ...

    def list_tasks(
        self, chosen: requests.TaskFilter, page: pages.Page, *, of_known: bool
    ) -> Sequence[model.Task]: ...


class ActionStore(Protocol):
    """Actions on an accepted request; implemented by ``db.request_actions.RequestActions``."""

    def cancel(
        self, request_id: str, keep_partial: bool = False, project_id: str | None = None
    ) -> model.CacheRequest: ...

    def pause(self, request_id: str, project_id: str | None = None) -> model.CacheRequest: ...

    def resume(self, request_id: str, project_id: str | None = None) -> model.CacheRequest: ...

    def retry(
        self,
        request_id: str,
        not_before: datetime.datetime | None = None,
        deadline: datetime.datetime | None = None,
        project_id: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> model.CacheRequest: ...

    def change(
        self, request_id: str, asked: model.RequestChange, project_id: str | None = None
    ) -> model.CacheRequest: ...


class AgentStore(Protocol):
    """The hosts; implemented by ``db.agents.Agents`` and ``cells.novahosts.NovaHosts``."""

    def get(self, hosts: Collection[str]) -> Mapping[str, model.Agent]: ...

    def down(self, hosts: Collection[str]) -> Mapping[str, str]: ...

    def look(self, hosts: Collection[str]) -> Mapping[str, model.Host]: ...

    def list_page(
        self,
        page: pages.Page,
        status: model.HostStatus | None,
        cell_uuid: str | None,
        hosts: Collection[str] | None,
    ) -> Sequence[model.Host]: ...


class CachedImageStore(Protocol):
    """The cache inventories of the hosts; implemented by ``db.caches.Caches``."""

    def present(
        self, hosts: Collection[str], image_ids: Collection[str]
    ) -> Mapping[tuple[str, str], model.CachedImage]: ...

    def of_host(self, host: str, page: pages.Page) -> Sequence[model.CachedImage]: ...

    def hosts_of(
        self, image_id: str, page: pages.Page, hosts: Collection[str] | None
    ) -> Sequence[model.CachedImage]: ...

    def known_hosts(self) -> Collection[str]: ...


class PinStore(Protocol):
    """The pins, as far as the API needs them; implemented by ``db.pins.Pins``."""

    def create(self, new: pins.NewPin) -> model.Pin: ...

    def get(self, pin_id: str, project_id: str | None = None) -> model.Pin: ...

    def list(
        self,
        project_id: str | None = None,
        status: str | None = None,
        aggregate: queries.AggregateFilter | None = None,
        *,
        page: pages.Page,
    ) -> Sequence[model.Pin]: ...

    def end(self, pin_id: str, reason: str, project_id: str | None = None) -> model.Pin: ...

    def pinned_images(self, aggregate_ids: Collection[int]) -> Mapping[int, frozenset[str]]: ...


class ExplanationStore(Protocol):
    """Reasons and rates as of now; implemented by ``db.explanations.Explanations``."""

    def requests(self, requests: Sequence[model.CacheRequest]) -> Sequence[model.CacheRequest]: ...

    def tasks(self, tasks: Sequence[model.Task]) -> Sequence[model.Task]: ...


class RateStore(Protocol):
    """Recent download rates of the hosts; implemented by ``db.jobs.Jobs``."""

    def measured_rates(self, hosts: Collection[str]) -> Mapping[str, float]: ...


class ServiceStore(Protocol):
    """The services of the deployment; implemented by ``db.services.Services``."""

    def list_page(
        self,
        limit: int,
        marker: str | None = None,
        binary: str | None = None,
        host: str | None = None,
        status: model.HostStatus | None = None,
    ) -> Sequence[model.Service]: ...

    def versions(self) -> Collection[str]: ...


class HearingStore(Protocol):
    """Which cells the conductors hear; implemented by ``db.hearing.Hearings``."""

    def load(self) -> hearing.AllHeard: ...


class NoSuchResource(exception.NotFound):
    """No resource has this path, or not at this microversion."""

    def __init__(self) -> None:
        super().__init__('The resource could not be found.')


@dataclasses.dataclass(frozen=True)
class Services:
    """The services that handlers use.

    :param images_for: returns the image service with the caller's token
    :param wake: wakes the conductors; may fail
    :param count_hosts: counts the hosts of each cell by status
    :param snapshot: lets the stores read one state of the database, in one transaction
    :param why_unsupported: returns why no compute may be called at all, None if they may
    :param remove: removes an image, by its id, from the cache of a host, as
        ``conductor.rpcapi.ConductorAPI.remove_image``
    """

    inventory: inventory.Inventory
    requests: RequestStore
    actions: ActionStore
    agents: AgentStore
    caches: CachedImageStore
    pins: PinStore
    rates: RateStore
    services: ServiceStore
    hearings: HearingStore
    cell_names: names.CellNames
    count_hosts: Callable[[], Mapping[str, statistics.HostCount]]
    explanations: ExplanationStore
    images_for: Callable[[request_context.RequestContext], service.ImageService]
    wake: Callable[[], None]
    why_unsupported: Callable[[], str | None]
    remove: Callable[[request_context.RequestContext, str, str], model.ImageRemoval]
    enforcer: policy.Enforcer
    snapshot: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Settings:
    """The options that handlers use.

    :ivar is_stock: stock nova-computes cache the images
    :ivar force_raw_images: for estimates, of computes that do not report theirs
    :ivar reserved_disk_bytes: the same
    :ivar precache_concurrency: returns the current value, for estimates
    """

    public_endpoint: str | None
    max_limit: int
    max_images_per_request: int
    max_tasks_per_request: int
    force_raw_images: bool
    reserved_disk_bytes: int
    precache_concurrency: Callable[[], int]
    is_stock: bool = False

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'Settings':
        return cls(
            public_endpoint=conf.api.public_endpoint,
            max_limit=conf.api.max_limit,
            max_images_per_request=conf.image_cache.max_images_per_request,
            max_tasks_per_request=conf.image_cache.max_tasks_per_request,
            force_raw_images=conf.force_raw_images,
            reserved_disk_bytes=conf.image_cache.reserved_disk_bytes,
            precache_concurrency=lambda: conf.image_cache.precache_concurrency,
            is_stock=conf.image_cache.compute_backend == image_cache.NOVA,
        )


@dataclasses.dataclass(frozen=True)
class Request:
    """One request of the API, authenticated and routed.

    :param path: the variables of the path
    :param query: the values of each query parameter
    :param body: the parsed JSON; None without a body
    :param base_url: URL of the root of the API, without a trailing slash
    """

    services: Services
    settings: Settings
    context: request_context.RequestContext
    version: microversion_parse.Version
    path: Mapping[str, str]
    query: Mapping[str, Sequence[str]]
    body: Any
    base_url: str

    def authorize(self, rule: str, target: Mapping[str, Any] | None = None) -> None:
        """Check a policy rule.

        :raises nova_precache.exception.PolicyNotAuthorized: the caller may not
        """
        self.services.enforcer.authorize(self.context, rule, target)

    def may(self, rule: str) -> bool:
        """Return whether the caller meets a policy rule."""
        try:
            self.authorize(rule)
        except exception.PolicyNotAuthorized:
            return False
        return True


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer of a handler; None as ``body`` means an empty one."""

    status: int = 200
    body: model.Json | None = None
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


Handler = Callable[[Request], Reply]
