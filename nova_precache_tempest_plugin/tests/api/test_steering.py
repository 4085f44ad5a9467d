# SPDX-License-Identifier: Apache-2.0
"""Requests are steered: paused, resumed, cancelled, tried again."""

from typing import Any

from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.tests import base
from nova_precache_tempest_plugin.tests.api import test_requests


class SteeringTest(base.HostTest):
    """Of requests whose window is far off, so that they wait for what is asked of them."""

    def _make_waiting(self) -> str:
        made = self.admin.requests.create_request(
            aggregate=self.aggregate['uuid'] if 'uuid' in self.aggregate else self.aggregate['id'],
            images=[self.make_image()],
            not_before=test_requests.YEARS_AHEAD,
        )
        return str(made['request']['id'])

    def _act(self, request_id: str, action: str, how: Any = None) -> str:
        return str(self.admin.requests.act(request_id, action, how)['request']['status'])

    @decorators.idempotent_id('c4866a3f-f0ba-4f6b-aed1-0391707c1bbc')
    def test_a_request_is_paused_and_resumed(self) -> None:
        request_id = self._make_waiting()
        self.admin.requests.wait_for(request_id, ['planned'])
        self.assertEqual('paused', self._act(request_id, 'pause'))
        self.assertEqual(
            'paused', self.admin.requests.show_request(request_id)['request']['status']
        )

        self.assertEqual('planned', self._act(request_id, 'resume'))

        self._act(request_id, 'cancel')
        self.admin.requests.wait_for(request_id)

    @decorators.idempotent_id('32e08555-e8df-4c18-93f1-b0f35c76f002')
    def test_a_cancelled_request_is_tried_again(self) -> None:
        request_id = self._make_waiting()
        self.admin.requests.wait_for(request_id, ['planned'])

        self._act(request_id, 'cancel', {'keep_partial': True})
        cancelled = self.admin.requests.wait_for(request_id)
        self.assertEqual(
            ('cancelled', {'cancelled': 1}), (cancelled['status'], cancelled['counts'])
        )
        self._act(request_id, 'retry', {'not_before': test_requests.YEARS_AGO})

        ended = self.admin.requests.wait_for(request_id)
        self.assertEqual(('completed', {'cached': 1}), (ended['status'], ended['counts']))

    @decorators.idempotent_id('6bc1833c-1ec8-4513-8827-0ef74ec8b64d')
    @decorators.attr(type='negative')
    def test_what_has_ended_is_not_steered(self) -> None:
        request_id = self._make_waiting()
        self._act(request_id, 'cancel')
        self.admin.requests.wait_for(request_id)
        for action in ('cancel', 'pause', 'resume'):
            self.assert_refused(
                exceptions.Conflict, f'{request_id} is cancelled', self._act, request_id, action
            )

    @decorators.idempotent_id('2cc7816b-8400-4efa-9d62-66cdeafe73bc')
    @decorators.attr(type='negative')
    def test_a_bad_action_is_named(self) -> None:
        request_id = self._make_waiting()
        for action, how, named in (
            ('explode', None, 'explode'),
            ('pause', {'until': 'later'}, 'pause'),
            ('cancel', {'colour': 'red'}, 'colour'),
            ('retry', {'deadline': test_requests.YEARS_AGO}, 'deadline'),
        ):
            self.assert_refused(exceptions.BadRequest, named, self._act, request_id, action, how)
        self._act(request_id, 'cancel')
