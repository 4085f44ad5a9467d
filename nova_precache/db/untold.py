# SPDX-License-Identifier: Apache-2.0
"""Caches of hosts that report no inventory, such as those of stock nova-computes.

Inventories that computes of this service reported earlier are ignored: the files may be gone.
"""

from collections.abc import Collection, Mapping, Sequence

from nova_precache import exception, model
from nova_precache.db import caches

_WHY = 'It is not known what is in the caches: with compute_backend = nova no host tells.'


class UntoldCaches(caches.Caches):
    """``caches.Caches`` with unknown contents."""

    def of_host(
        self, host: str, limit: int | None = None, marker: str | None = None
    ) -> Sequence[model.CachedImage]:
        raise exception.NotByNova(_WHY)

    def hosts_of(
        self, image_id: str, limit: int | None = None, marker: str | None = None
    ) -> Sequence[model.CachedImage]:
        raise exception.NotByNova(_WHY)

    def present(
        self, hosts: Collection[str], image_ids: Collection[str]
    ) -> Mapping[tuple[str, str], model.CachedImage]:
        return {}

    def known_hosts(self) -> frozenset[str]:
        return frozenset()
