# SPDX-License-Identifier: Apache-2.0
"""Hosts, and what is in their caches, as they report it."""

import hashlib
import uuid

from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.tests import base


class HostsTest(base.HostTest):
    """One image on one host, seen from both sides."""

    @decorators.idempotent_id('9acdde20-0cc5-4764-afce-9b64e8c611a0')
    @decorators.attr(type='smoke')
    def test_hosts_are_listed_and_shown(self) -> None:
        shown = self.admin.hosts.show_host(self.host)['host']
        self.assertEqual((self.host, 'up', None), (shown['host'], shown['status'], shown['reason']))
        listed = self.admin.hosts.list_hosts(status='up', cell=shown['cell'])['hosts']
        self.assertIn(self.host, [host['host'] for host in listed])
        page = self.admin.hosts.list_hosts(limit=1)['hosts']
        self.assertEqual(1, len(page))

    @decorators.idempotent_id('2d6f1e95-22f3-4992-b372-4d2ad1925bb0')
    def test_a_cached_image_is_found_on_its_host(self) -> None:
        image_id = self.make_image()
        self.assertEqual([], self.admin.hosts.list_image_hosts(image_id)['hosts'])
        made = self.admin.requests.create_request(hosts=[self.host], images=[image_id])
        self.admin.requests.wait_for(made['request']['id'])

        (host,) = self.wait_until(
            lambda: self.admin.hosts.list_image_hosts(image_id)['hosts'],
            f'{self.host} reports the image',
        )

        self.assertEqual((self.host, base.IMAGE_BYTES), (host['host'], host['size_bytes']))
        # As Nova names the file, before which the page begins.
        name = hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()
        page = self.admin.hosts.list_host_images(self.host, marker=name[:-1], limit=1)
        (image,) = page['images']
        self.assertEqual(
            (name, image_id, False), (image['name'], image['image_id'], image['pinned'])
        )

    @decorators.idempotent_id('1d747518-96d1-4adb-aa8e-2b369ab97862')
    @decorators.attr(type='negative')
    def test_what_there_is_not_is_not_found(self) -> None:
        hosts = self.admin.hosts
        for ask in (
            lambda: hosts.show_host('nowhere'),
            lambda: hosts.list_host_images('nowhere'),
            lambda: hosts.list_image_hosts('nowhere'),
        ):
            self.assert_refused(exceptions.NotFound, 'nowhere', ask)
        self.assertEqual([], hosts.list_image_hosts(str(uuid.uuid4()))['hosts'])

    @decorators.idempotent_id('3eca1ad8-ed49-42b0-a2fd-6fff19ea41ee')
    @decorators.attr(type='negative')
    def test_a_bad_parameter_is_named(self) -> None:
        for query in ({'status': 'tired'}, {'cell': 'one'}, {'limit': -1}, {'colour': 'red'}):
            self.assert_refused(exceptions.BadRequest, *query, self.admin.hosts.list_hosts, **query)
