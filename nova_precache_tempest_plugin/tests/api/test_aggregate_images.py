# SPDX-License-Identifier: Apache-2.0
"""Images are asked for in Nova's way, of microversion 2.81, and watched in the service's own."""

import uuid

from tempest import config
from tempest.lib import decorators, exceptions
from tempest.lib.common import api_microversion_fixture

from nova_precache_tempest_plugin.tests import base

CONF = config.CONF


class AggregateImagesTest(base.HostTest):
    """The one operation that Nova has for it."""

    def setUp(self) -> None:
        super().setUp()
        self._speak('2.81')

    def _speak(self, microversion: str) -> None:
        self.useFixture(
            api_microversion_fixture.APIMicroversionFixture(compute_microversion=microversion)
        )

    @decorators.idempotent_id('1705cc57-6a82-41ef-a1ef-e5d7a69c0aea')
    @decorators.attr(type='smoke')
    def test_an_image_is_cached_and_the_location_tells_of_it(self) -> None:
        image_id = self.make_image()

        answer = self.admin.aggregate_images.cache_images(self.aggregate['id'], image_id)

        self.assertFalse(answer.data)
        location = answer.response['location']
        self.assertRegex(location, '^https?://.+/v1/requests/[0-9a-f-]{36}$')
        request_id = location.rpartition('/')[2]
        request = self.admin.requests.wait_for(request_id)
        self.assertEqual('completed', request['status'])
        self.assertEqual([image_id], request['images'])
        self.assertEqual(self.aggregate['id'], request['aggregate']['id'])
        (task,) = self.admin.requests.list_tasks(request_id)['tasks']
        self.assertEqual((self.host, 'cached'), (task['host'], task['status']))

    @decorators.idempotent_id('3b0c4bfe-1c6a-46cf-beec-1387ce6f4a7d')
    def test_an_aggregate_without_hosts_is_done_at_once(self) -> None:
        empty = self.make_aggregate()
        answer = self.admin.aggregate_images.cache_images(empty['id'], self.make_image())
        request_id = answer.response['location'].rpartition('/')[2]
        request = self.admin.requests.wait_for(request_id)
        self.assertEqual(('completed', {}), (request['status'], request['counts']))

    @decorators.idempotent_id('b69c9df3-e487-4cdd-9402-3d17e2118689')
    @decorators.attr(type='negative')
    def test_there_is_nothing_before_2_81(self) -> None:
        self._speak('2.80')
        self.assertRaises(
            exceptions.NotFound,
            self.admin.aggregate_images.cache_images,
            self.aggregate['id'],
            str(uuid.uuid4()),
        )

    @decorators.idempotent_id('d939c17b-3aa8-43a3-aeb9-406a7f326667')
    @decorators.attr(type='negative')
    def test_a_bad_field_is_named(self) -> None:
        unknown, images = str(uuid.uuid4()), self.admin.aggregate_images
        for body, named in (
            ({'cache': []}, 'cache'),
            ({'cache': [{'id': 'no-uuid'}]}, 'id'),
            ({'cache': [{'id': unknown, 'size': 1}]}, 'size'),
            ({'cache': [{'id': unknown}], 'speed': 1}, 'speed'),
            ({}, 'cache'),
            ({'cache': [{'id': unknown}, {'id': unknown}]}, 'Duplicate images'),
            ({'cache': [{'id': unknown}]}, unknown),
        ):
            self.assert_refused(
                exceptions.BadRequest, named, images.send, self.aggregate['id'], body
            )

    @decorators.idempotent_id('4d7e5b3a-6f4c-49cf-8314-465cab5ef000')
    @decorators.attr(type='negative')
    def test_too_many_images_are_refused_by_the_name_of_the_limit(self) -> None:
        too_many = CONF.image_precache.max_images_per_request + 1
        image_ids = [str(uuid.uuid4()) for _ in range(too_many)]
        self.assert_refused(
            exceptions.BadRequest,
            'max_images_per_request',
            self.admin.aggregate_images.cache_images,
            self.aggregate['id'],
            *image_ids,
        )

    @decorators.idempotent_id('0fa5bf61-18e4-4253-ba9a-04acca88687f')
    @decorators.attr(type='negative')
    def test_an_unknown_aggregate_is_not_found(self) -> None:
        self.assert_refused(
            exceptions.NotFound,
            str(2**31 - 1),
            self.admin.aggregate_images.cache_images,
            2**31 - 1,
            str(uuid.uuid4()),
        )
