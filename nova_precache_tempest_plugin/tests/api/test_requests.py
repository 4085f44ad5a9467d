# SPDX-License-Identifier: Apache-2.0
"""Requests: made with options, followed to their end, listed in pages."""

import uuid

from tempest import config
from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.tests import base

CONF = config.CONF

YEARS_AGO, YEARS_AHEAD = '2001-01-01T00:00:00Z', '2100-01-01T00:00:00Z'


class RequestsTest(base.HostTest):
    """What is asked for is done, and shown as it was asked."""

    @decorators.idempotent_id('d8a831d0-614c-4a00-82b4-bc6db1475ed5')
    @decorators.attr(type='smoke')
    def test_a_request_is_followed_to_its_end(self) -> None:
        image_id = self.make_image()

        made = self.admin.requests.create_request(
            aggregate=self.aggregate['name'],
            images=[image_id],
            priority=5,
            max_rate_bytes=10**9,
            deadline=YEARS_AHEAD,
            description='of tempest',
        )

        request_id = made['request']['id']
        self.assertTrue(made.response['location'].endswith(f'/v1/requests/{request_id}'))
        self.assertEqual(self.admin.requests.user_id, made['request']['user_id'])
        self.assertEqual(self.admin.requests.project_id, made['request']['project_id'])
        ended = self.admin.requests.wait_for(request_id)
        self.assertEqual(('completed', {'cached': 1}), (ended['status'], ended['counts']))
        self.assertEqual((1, 1), (ended['hosts_done'], ended['hosts_total']))
        self.assertEqual(('of tempest', 5), (ended['description'], ended['priority']))
        self.assertEqual(10**9, ended['options']['max_rate_bytes'])
        (task,) = self.admin.requests.list_tasks(request_id, status='cached')['tasks']
        self.assertEqual((self.host, image_id), (task['host'], task['image_id']))
        self.assertEqual(base.IMAGE_BYTES, task['bytes_done'])
        self.assertEqual([], self.admin.requests.list_tasks(request_id, status='error')['tasks'])

    @decorators.idempotent_id('2e633606-7a35-477f-8d68-685435358179')
    def test_hosts_are_named_instead_of_an_aggregate(self) -> None:
        image_id = self.make_image()
        outcomes = []
        for _ in range(2):
            made = self.admin.requests.create_request(hosts=[self.host], images=[image_id])
            self.assertEqual([self.host], made['request']['hosts'])
            self.assertIsNone(made['request']['aggregate'])
            outcomes.append(self.admin.requests.wait_for(made['request']['id'])['counts'])
        self.assertEqual([{'cached': 1}, {'existing': 1}], outcomes)

    @decorators.idempotent_id('148fac5d-409e-42ab-8a17-818dbdf88e4f')
    def test_a_request_that_is_sent_twice_is_made_once(self) -> None:
        asked = {
            'aggregate': self.aggregate['id'],
            'images': [self.make_image()],
            'client_request_id': str(uuid.uuid4()),
        }
        first, second = (self.admin.requests.create_request(**asked) for _ in range(2))
        self.assertEqual(first['request']['id'], second['request']['id'])
        self.admin.requests.wait_for(first['request']['id'])

    @decorators.idempotent_id('c78e50a6-bed7-40f0-9b10-5bce6cbcd97f')
    def test_requests_are_listed_in_pages(self) -> None:
        image_id = self.make_image()
        made = [self._wait_for_one(image_id) for _ in range(3)]

        first = self.admin.requests.list_requests(image=image_id, limit=2)
        self.assertEqual(made[:0:-1], [each['id'] for each in first['requests']])
        (link,) = first['requests_links']
        self.assertEqual('next', link['rel'])
        self.assertIn(f'marker={made[1]}', link['href'])
        second = self.admin.requests.list_requests(image=image_id, limit=2, marker=made[1])
        self.assertEqual(made[:1], [each['id'] for each in second['requests']])
        self.assertNotIn('requests_links', second)
        turned = self.admin.requests.list_requests(
            image=image_id, sort_key='created_at', sort_dir='asc', status='completed'
        )
        self.assertEqual(made, [each['id'] for each in turned['requests']])

    def _wait_for_one(self, image_id: str) -> str:
        made = self.admin.requests.create_request(hosts=[self.host], images=[image_id])
        return str(self.admin.requests.wait_for(made['request']['id'])['id'])

    @decorators.idempotent_id('445937df-5e72-484a-9aec-b0cc757ade59')
    @decorators.attr(type='negative')
    def test_a_bad_field_is_named(self) -> None:
        asked = {'aggregate': self.aggregate['id'], 'images': [str(uuid.uuid4())]}
        for change, named in (
            ({'images': []}, 'images'),
            ({'images': ['no-uuid']}, 'images.0'),
            ({'hosts': [self.host]}, 'Either aggregate or hosts'),
            ({'aggregate': None}, 'Either aggregate or hosts'),
            ({'aggregate': None, 'hosts': ['nowhere']}, 'hosts'),
            ({'priority': 1001}, 'priority'),
            ({'canary': 0}, 'canary'),
            ({'max_rate_bytes': 'fast'}, 'max_rate_bytes'),
            ({'deadline': YEARS_AGO}, 'deadline'),
            ({'not_before': 'tomorrow'}, 'not_before'),
            ({'wait_for_down_hosts': True}, 'wait_for_down_hosts'),
            ({'colour': 'red'}, 'colour'),
            ({}, asked['images'][0]),
        ):
            self.assert_refused(
                exceptions.BadRequest,
                named,
                self.admin.requests.create_request,
                **{**asked, **change},
            )
        self.assertEqual(
            [], self.admin.requests.list_requests(image=asked['images'][0])['requests']
        )

    @decorators.idempotent_id('a695c1ce-3a43-459d-add9-161cd6779146')
    @decorators.attr(type='negative')
    def test_a_bad_parameter_is_named(self) -> None:
        unknown = str(uuid.uuid4())
        for query, named in (
            ({'status': 'tired'}, 'status'),
            ({'limit': 0}, 'limit'),
            ({'sort_key': 'colour'}, 'sort_key'),
            ({'colour': 'red'}, 'colour'),
            ({'marker': unknown}, unknown),
        ):
            self.assert_refused(
                exceptions.BadRequest, named, self.admin.requests.list_requests, **query
            )

    @decorators.idempotent_id('7d60b1ff-a5cd-47f0-bf04-39d35745af02')
    @decorators.attr(type='negative')
    def test_too_many_images_are_over_the_limit(self) -> None:
        too_many = CONF.image_precache.max_images_per_request + 1
        asked = {'hosts': [self.host], 'images': [str(uuid.uuid4()) for _ in range(too_many)]}
        for ask in (self.admin.requests.create_request, self.admin.requests.estimate):
            self.assert_refused(exceptions.OverLimit, 'max_images_per_request', ask, **asked)

    @decorators.idempotent_id('3e564019-4d6b-454b-83a6-ae4d37014e81')
    @decorators.attr(type='negative')
    def test_what_there_is_not_is_not_found(self) -> None:
        requests, unknown = self.admin.requests, str(uuid.uuid4())
        for ask in (
            lambda: requests.show_request(unknown),
            lambda: requests.list_tasks(unknown),
            lambda: requests.act(unknown, 'cancel'),
            lambda: requests.create_request(aggregate=unknown, images=[self.make_image()]),
        ):
            self.assert_refused(exceptions.NotFound, unknown, ask)
