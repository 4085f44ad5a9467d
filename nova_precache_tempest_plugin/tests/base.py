# SPDX-License-Identifier: Apache-2.0
"""What the tests share: an administrator, the clients, images and aggregates of their own.

All that a class makes is removed when it is done, but for requests and ended pins, which
the service keeps for a while.
"""

import dataclasses
import io
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from tempest import config, test
from tempest.lib import exceptions
from tempest.lib.common.utils import data_utils, test_utils

from nova_precache_tempest_plugin.services import contract, v1

CONF = config.CONF

IMAGE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Doors:
    """The clients of one user."""

    aggregates: Any
    aggregate_images: Any
    documents: v1.DocumentsClient
    hosts: v1.HostsClient
    images: Any
    pins: v1.PinsClient
    requests: v1.RequestsClient


def doors(manager: Any, promised: contract.Contract) -> Doors:
    """Make the clients of a user, whose answers of /v1 are to be as promised."""
    precache = manager.image_precache_v1
    made = Doors(
        aggregates=manager.aggregates_client,
        aggregate_images=manager.aggregate_images.AggregateImagesClient(),
        documents=precache.DocumentsClient(),
        hosts=precache.HostsClient(),
        images=manager.image_client_v2,
        pins=precache.PinsClient(),
        requests=precache.RequestsClient(),
    )
    for client in (made.hosts, made.pins, made.requests):
        client.contract = promised
    return made


class BaseTest(test.BaseTestCase):
    """An administrator, of whose project everything is."""

    credentials: Sequence[str | list[str]] = ('admin',)
    admin_type = 'admin'
    admin: Doors
    promised: contract.Contract

    @classmethod
    def skip_checks(cls) -> None:
        super().skip_checks()
        if not CONF.service_available.image_precache:
            raise cls.skipException('[service_available] image_precache is off')

    @classmethod
    def setup_credentials(cls) -> None:
        cls.set_network_resources()
        super().setup_credentials()

    @classmethod
    def setup_clients(cls) -> None:
        super().setup_clients()
        manager = getattr(cls, f'os_{cls.admin_type}')
        document = manager.image_precache_v1.DocumentsClient().show_openapi()
        cls.promised = contract.Contract(document)
        cls.admin = doors(manager, cls.promised)

    @classmethod
    def make_image(cls) -> str:
        """Upload a small image that only the administrator's project sees."""
        name = data_utils.rand_name('image', prefix=CONF.resource_name_prefix)
        image_id = str(
            cls.admin.images.create_image(
                name=name, container_format='bare', disk_format='raw', visibility='private'
            )['id']
        )
        cls._remove_at_the_end(cls.admin.images.delete_image, image_id)
        cls.admin.images.store_image_file(image_id, io.BytesIO(os.urandom(IMAGE_BYTES)))
        return image_id

    @classmethod
    def make_aggregate(cls, *hosts: str) -> dict[str, Any]:
        name = data_utils.rand_name('aggregate', prefix=CONF.resource_name_prefix)
        made = dict(cls.admin.aggregates.create_aggregate(name=name)['aggregate'])
        cls._remove_at_the_end(cls.admin.aggregates.delete_aggregate, made['id'])
        for host in hosts:
            cls.admin.aggregates.add_host(made['id'], host=host)
            cls._remove_at_the_end(cls.admin.aggregates.remove_host, made['id'], host=host)
        return made

    @classmethod
    def find_host(cls) -> str:
        """Name a host on which images can be cached."""
        hosts = cls.admin.hosts.list_hosts(status='up', limit=1)['hosts']
        if not hosts:
            raise exceptions.InvalidConfiguration('No host is up')
        return str(hosts[0]['host'])

    @classmethod
    def wait_until(cls, condition: Callable[[], Any], what: str) -> Any:
        """Wait until something is so, and give what the condition then gave."""
        end = time.monotonic() + CONF.image_precache.build_timeout
        while not (found := condition()):
            if time.monotonic() > end:
                raise exceptions.TimeoutException(what)
            time.sleep(CONF.image_precache.build_interval)
        return found

    def assert_refused(
        self,
        refusal: type[Exception],
        named: str,
        call: Callable[..., object],
        *arguments: Any,
        **options: Any,
    ) -> None:
        """See that a call is refused, in words that name what is wrong."""
        error = self.assertRaises(refusal, call, *arguments, **options)
        self.assertIn(named, error.resp_body['message'])

    @classmethod
    def _remove_at_the_end(cls, remove: Callable[..., object], *what: Any, **how: Any) -> None:
        cls.addClassResourceCleanup(test_utils.call_and_ignore_notfound_exc, remove, *what, **how)


class HostTest(BaseTest):
    """An aggregate of one host, beside the administrator."""

    host: str
    aggregate: dict[str, Any]

    @classmethod
    def resource_setup(cls) -> None:
        super().resource_setup()
        cls.host = cls.find_host()
        cls.aggregate = cls.make_aggregate(cls.host)
