# SPDX-License-Identifier: Apache-2.0
"""Estimates: what a request would come to, of which nothing is begun."""

from typing import Any

from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.tests import base
from nova_precache_tempest_plugin.tests.api import test_requests


class EstimateTest(base.HostTest):
    """What is missing is to be moved, what is there is not."""

    @decorators.idempotent_id('7ef91761-b586-4ac1-9af9-c17b204971e8')
    def test_an_estimate_knows_what_is_cached_already(self) -> None:
        asked = {'aggregate': self.aggregate['id'], 'images': [self.make_image()]}

        missing = self.admin.requests.estimate(**asked)['estimate']
        self.assertEqual(base.IMAGE_BYTES, missing['totals']['bytes_to_move'])
        self.assertEqual((1, 0), self._tasks(missing))
        self.assertEqual([self.host], [host['host'] for host in missing['hosts']])
        self.assertEqual(
            [], self.admin.requests.list_requests(image=asked['images'][0])['requests']
        )

        made = self.admin.requests.create_request(**asked)
        self.admin.requests.wait_for(made['request']['id'])
        cached = self.wait_until(lambda: self._cached(asked), 'the estimate knows of the image')

        self.assertEqual(0, cached['totals']['bytes_to_move'])
        self.assertEqual('cached', cached['hosts'][0]['images'][0]['state'])

    def _cached(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        estimate = dict(self.admin.requests.estimate(**asked)['estimate'])
        return estimate if self._tasks(estimate) == (1, 1) else None

    @staticmethod
    def _tasks(estimate: dict[str, Any]) -> tuple[int, int]:
        return estimate['totals']['tasks'], estimate['totals']['tasks_cached']

    @decorators.idempotent_id('ef7121d3-6c31-4391-aa7c-8446bbb50411')
    @decorators.attr(type='negative')
    def test_a_bad_field_is_named(self) -> None:
        self.assert_refused(
            exceptions.BadRequest,
            'deadline',
            self.admin.requests.estimate,
            hosts=[self.host],
            images=[self.make_image()],
            deadline=test_requests.YEARS_AGO,
        )
