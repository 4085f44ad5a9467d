# SPDX-License-Identifier: Apache-2.0
"""Who may do what, by the policies that the service has of its own."""

import contextlib
import uuid
from collections.abc import Callable, Mapping

from tempest import config
from tempest.lib import decorators, exceptions
from tempest.lib.common import api_microversion_fixture

from nova_precache_tempest_plugin.tests import base

CONF = config.CONF

NOBODY = str(uuid.UUID(int=0))
Calls = Mapping[str, Callable[[base.Doors], object]]


class RolesTest(base.HostTest):
    """An admin, a reader of the same project, one of another, and who has a role of no worth."""

    credentials = (
        'project_admin',
        'project_reader',
        'project_alt_reader',
        ['outsider', CONF.image_precache.outsider_role],
    )
    admin_type = 'project_admin'
    reader: base.Doors
    stranger: base.Doors
    outsider: base.Doors
    request_id: str
    pin_id: str

    @classmethod
    def setup_credentials(cls) -> None:
        role = CONF.image_precache.outsider_role
        if CONF.auth.use_dynamic_credentials:
            creator = cls._get_credentials_provider().creds_client
            with contextlib.suppress(exceptions.Conflict):
                creator.create_user_role(role)
        super().setup_credentials()

    @classmethod
    def setup_clients(cls) -> None:
        super().setup_clients()
        cls.reader = base.doors(cls.os_project_reader, cls.promised)
        cls.stranger = base.doors(cls.os_project_alt_reader, cls.promised)
        cls.outsider = base.doors(cls.os_outsider, cls.promised)

    @classmethod
    def resource_setup(cls) -> None:
        super().resource_setup()
        images = [cls.make_image()]
        made = cls.admin.requests.create_request(aggregate=cls.aggregate['id'], images=images)
        cls.request_id = made['request']['id']
        cls.admin.requests.wait_for(cls.request_id)
        cls.pin_id = cls.admin.pins.create_pin(aggregate=cls.aggregate['id'], images=images)['pin'][
            'id'
        ]
        cls.addClassResourceCleanup(cls.admin.pins.delete_pin, cls.pin_id)

    def setUp(self) -> None:
        super().setUp()
        self.useFixture(
            api_microversion_fixture.APIMicroversionFixture(compute_microversion='2.81')
        )

    @property
    def _writes(self) -> Calls:
        """Everything that only an administrator may do."""
        aggregate_id, request_id = self.aggregate['id'], self.request_id
        asked = {'aggregate': aggregate_id, 'images': [NOBODY]}
        return {
            'os-aggregates:index': lambda user: user.aggregates.list_aggregates(),
            'os-aggregates:show': lambda user: user.aggregates.show_aggregate(aggregate_id),
            'os-aggregates:create': lambda user: user.aggregates.create_aggregate(name='mine'),
            'os-aggregates:update': lambda user: user.aggregates.update_aggregate(
                aggregate_id, name='mine'
            ),
            'os-aggregates:delete': lambda user: user.aggregates.delete_aggregate(aggregate_id),
            'os-aggregates:add_host': lambda user: user.aggregates.add_host(
                aggregate_id, host='another'
            ),
            'os-aggregates:remove_host': lambda user: user.aggregates.remove_host(
                aggregate_id, host=self.host
            ),
            'os-aggregates:set_metadata': lambda user: user.aggregates.set_metadata(
                aggregate_id, metadata={'a': 'b'}
            ),
            'aggregates:images': lambda user: user.aggregate_images.cache_images(
                aggregate_id, NOBODY
            ),
            'requests:create': lambda user: user.requests.create_request(**asked),
            'requests:cancel': lambda user: user.requests.act(request_id, 'cancel'),
            'requests:pause': lambda user: user.requests.act(request_id, 'pause'),
            'requests:resume': lambda user: user.requests.act(request_id, 'resume'),
            'requests:retry': lambda user: user.requests.act(request_id, 'retry'),
            'estimate': lambda user: user.requests.estimate(**asked),
            'pins:create': lambda user: user.pins.create_pin(**asked),
            'pins:delete': lambda user: user.pins.delete_pin(self.pin_id),
        }

    @property
    def _reads(self) -> Calls:
        """Everything that a reader may see, too."""
        return {
            'requests:list': lambda user: user.requests.list_requests(),
            'requests:show': lambda user: user.requests.show_request(self.request_id),
            'requests:tasks': lambda user: user.requests.list_tasks(self.request_id),
            'pins:list': lambda user: user.pins.list_pins(),
            'pins:show': lambda user: user.pins.show_pin(self.pin_id),
        }

    @property
    def _hosts(self) -> Calls:
        """The hosts and what is in their caches, which only an administrator sees."""
        return {
            'hosts:list': lambda user: user.hosts.list_hosts(),
            'hosts:show': lambda user: user.hosts.show_host(self.host),
            'hosts:images': lambda user: user.hosts.list_host_images(self.host),
            'images:hosts': lambda user: user.hosts.list_image_hosts(NOBODY),
        }

    def _assert_forbidden(self, user: base.Doors, calls: Calls) -> None:
        allowed = [rule for rule, call in calls.items() if not self._is_forbidden(rule, call, user)]
        self.assertEqual([], allowed)

    @staticmethod
    def _is_forbidden(rule: str, call: Callable[[base.Doors], object], user: base.Doors) -> bool:
        try:
            call(user)
        except exceptions.Forbidden as refusal:
            return rule in refusal.resp_body['message']
        return False

    @decorators.idempotent_id('cc2d12d6-4095-4d03-97b8-20c7b6d9e78f')
    def test_an_administrator_sees_everything(self) -> None:
        for call in {**self._reads, **self._hosts}.values():
            call(self.admin)

    @decorators.idempotent_id('3a435461-5c5c-4cb1-869c-e64c9119384a')
    @decorators.attr(type='negative')
    def test_who_has_no_role_of_worth_may_do_nothing(self) -> None:
        self._assert_forbidden(self.outsider, {**self._writes, **self._reads, **self._hosts})

    @decorators.idempotent_id('ce340acd-6401-4d67-a0c4-6a1a851a703d')
    @decorators.attr(type='negative')
    def test_a_reader_changes_nothing(self) -> None:
        self._assert_forbidden(self.reader, self._writes)

    @decorators.idempotent_id('0b0a3f5c-6b8e-4b9e-9a58-5f4d3c1f7e26')
    @decorators.attr(type='negative')
    def test_a_reader_sees_no_hosts(self) -> None:
        self._assert_forbidden(self.reader, self._hosts)
        self._assert_forbidden(self.stranger, self._hosts)

    @decorators.idempotent_id('59ad9874-ed71-4113-b315-b186199e63fc')
    def test_a_reader_sees_what_is_of_the_project(self) -> None:
        for call in self._reads.values():
            call(self.reader)
        listed = self.reader.requests.list_requests()['requests']
        self.assertIn(self.request_id, [request['id'] for request in listed])

    @decorators.idempotent_id('75a7c7c0-495e-457f-b51c-871f902d129c')
    @decorators.attr(type='negative')
    def test_a_reader_sees_nothing_of_another_project(self) -> None:
        self.assertEqual([], self.stranger.requests.list_requests()['requests'])
        self.assertEqual([], self.stranger.pins.list_pins()['pins'])
        for call in (
            self._reads['requests:show'],
            self._reads['requests:tasks'],
            self._reads['pins:show'],
        ):
            self.assertRaises(exceptions.NotFound, call, self.stranger)
