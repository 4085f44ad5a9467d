# SPDX-License-Identifier: Apache-2.0
"""Pins: made, seen to, ended."""

import contextlib
import uuid

from tempest import config
from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.tests import base
from nova_precache_tempest_plugin.tests.api import test_requests

CONF = config.CONF


class PinsTest(base.HostTest):
    """A pin has its images cached without anybody asking again."""

    def _make_pin(self, image_id: str, **more: str) -> str:
        made = self.admin.pins.create_pin(
            aggregate=self.aggregate['name'], images=[image_id], **more
        )
        pin_id = str(made['pin']['id'])
        self.assertTrue(made.response['location'].endswith(f'/v1/pins/{pin_id}'))
        self.addCleanup(self._end_if_it_lives, pin_id)
        return pin_id

    def _end_if_it_lives(self, pin_id: str) -> None:
        with contextlib.suppress(exceptions.Conflict):
            self.admin.pins.delete_pin(pin_id)

    def _pin(self, pin_id: str) -> dict[str, object]:
        return dict(self.admin.pins.show_pin(pin_id)['pin'])

    @decorators.idempotent_id('a114f6bf-efa9-4b20-98f2-f5b1b83f9425')
    @decorators.attr(type='smoke')
    def test_a_pinned_image_comes_to_the_host_by_itself(self) -> None:
        image_id = self.make_image()

        pin_id = self._make_pin(image_id, until=test_requests.YEARS_AHEAD)

        self.wait_until(
            lambda: self._pin(pin_id)['coverage'] == {'wanted': 1, 'cached': 1},
            f'pin {pin_id} is covered',
        )
        # There are several if the host reports its cache less often than pins are checked.
        requests = self.admin.requests.list_requests(pin=pin_id)['requests']
        self.assertNotEqual([], requests)
        for request in requests:
            self.assertEqual([image_id], request['images'])
            self.assertEqual('completed', self.admin.requests.wait_for(request['id'])['status'])

    @decorators.idempotent_id('4f1c5f74-02c8-4828-b566-230997faf0fc')
    def test_an_ended_pin_is_shown_as_ended(self) -> None:
        pin_id = self._make_pin(self.make_image(), description='of tempest')
        mine = {'aggregate': self.aggregate['id']}
        active = self.admin.pins.list_pins(status='active', **mine)['pins']
        self.assertIn(pin_id, [pin['id'] for pin in active])

        self.admin.pins.delete_pin(pin_id)

        pin = self._pin(pin_id)
        self.assertEqual(('ended', 'of tempest'), (pin['status'], pin['description']))
        self.assertIn('ended by', pin['reason'])
        active = self.admin.pins.list_pins(status='active', **mine)['pins']
        self.assertNotIn(pin_id, [each['id'] for each in active])
        self.assert_refused(exceptions.Conflict, pin_id, self.admin.pins.delete_pin, pin_id)

    @decorators.idempotent_id('fbde9061-c0b5-435a-bb20-17056bde9c8b')
    @decorators.attr(type='negative')
    def test_a_bad_field_is_named(self) -> None:
        asked = {'aggregate': self.aggregate['id'], 'images': [str(uuid.uuid4())]}
        for change, named in (
            ({'images': []}, 'images'),
            ({'aggregate': None}, 'aggregate'),
            ({'until': test_requests.YEARS_AGO}, 'until'),
            ({'colour': 'red'}, 'colour'),
            ({}, asked['images'][0]),
        ):
            self.assert_refused(
                exceptions.BadRequest, named, self.admin.pins.create_pin, **{**asked, **change}
            )

    @decorators.idempotent_id('ee663da0-6f55-439e-8847-ca14579ce314')
    @decorators.attr(type='negative')
    def test_too_many_images_are_over_the_limit(self) -> None:
        too_many = CONF.image_precache.max_images_per_request + 1
        self.assert_refused(
            exceptions.OverLimit,
            'max_images_per_request',
            self.admin.pins.create_pin,
            aggregate=self.aggregate['id'],
            images=[str(uuid.uuid4()) for _ in range(too_many)],
        )

    @decorators.idempotent_id('edd90a75-bdec-4b6f-82fa-1dfc14b63c8a')
    @decorators.attr(type='negative')
    def test_what_there_is_not_is_not_found(self) -> None:
        pins, unknown = self.admin.pins, str(uuid.uuid4())
        for ask in (
            lambda: pins.show_pin(unknown),
            lambda: pins.delete_pin(unknown),
            lambda: pins.create_pin(aggregate=unknown, images=[self.make_image()]),
        ):
            self.assert_refused(exceptions.NotFound, unknown, ask)
