# SPDX-License-Identifier: Apache-2.0
"""Aggregates as Nova serves them; tempest's client holds the answers against Nova's schemas."""

from tempest.lib import decorators, exceptions
from tempest.lib.common import api_microversion_fixture
from tempest.lib.common.utils import data_utils

from nova_precache_tempest_plugin.tests import base


class AggregatesTest(base.BaseTest):
    """Under the first microversion, where an aggregate has no uuid, and one that shows it."""

    @decorators.idempotent_id('bfe6aa30-6772-464f-a8e6-38c358ee26fc')
    @decorators.attr(type='smoke')
    def test_an_aggregate_is_made_shown_listed_and_deleted(self) -> None:
        made = self.make_aggregate()
        shown = self.admin.aggregates.show_aggregate(made['id'])['aggregate']
        self.assertEqual(made['name'], shown['name'])
        self.assertEqual([], shown['hosts'])
        self.assertNotIn('uuid', shown)
        self.assertIn(shown, self.admin.aggregates.list_aggregates()['aggregates'])

        self.admin.aggregates.delete_aggregate(made['id'])

        self.assertRaises(exceptions.NotFound, self.admin.aggregates.show_aggregate, made['id'])

    @decorators.idempotent_id('1fc25b17-70ec-4080-8f65-19f7c0b95af5')
    def test_an_aggregate_has_a_uuid_since_2_41(self) -> None:
        self.useFixture(
            api_microversion_fixture.APIMicroversionFixture(compute_microversion='2.41')
        )
        made = self.make_aggregate()
        shown = self.admin.aggregates.show_aggregate(made['id'])['aggregate']
        self.assertEqual(made['uuid'], shown['uuid'])

    @decorators.idempotent_id('9344d931-73bc-49c8-beda-1d6939c417c7')
    def test_an_aggregate_changes_its_name_and_its_metadata(self) -> None:
        made = self.make_aggregate()
        name = data_utils.rand_name('renamed')

        renamed = self.admin.aggregates.update_aggregate(made['id'], name=name)['aggregate']
        self.assertEqual(name, renamed['name'])
        told = {'disk': 'fast', 'site': 'edge'}
        set_to = self.admin.aggregates.set_metadata(made['id'], metadata=told)['aggregate']
        self.assertEqual(told, set_to['metadata'])
        removed = self.admin.aggregates.set_metadata(made['id'], metadata={'site': None})
        self.assertEqual({'disk': 'fast'}, removed['aggregate']['metadata'])

    @decorators.idempotent_id('fe7cb32d-0e54-4885-ae15-b10ac9fa8573')
    def test_a_host_comes_and_goes(self) -> None:
        made, host = self.make_aggregate(), self.find_host()

        filled = self.admin.aggregates.add_host(made['id'], host=host)['aggregate']
        self.assertEqual([host], filled['hosts'])
        self.assert_refused(
            exceptions.Conflict, host, self.admin.aggregates.add_host, made['id'], host=host
        )
        emptied = self.admin.aggregates.remove_host(made['id'], host=host)['aggregate']
        self.assertEqual([], emptied['hosts'])

    @decorators.idempotent_id('3a77f750-82db-416a-9728-ad4bd41cfd5a')
    @decorators.attr(type='negative')
    def test_two_aggregates_have_two_names(self) -> None:
        made = self.make_aggregate()
        self.assert_refused(
            exceptions.Conflict,
            made['name'],
            self.admin.aggregates.create_aggregate,
            name=made['name'],
        )

    @decorators.idempotent_id('64330a9e-ec65-4f59-98da-ea4d97595ab6')
    @decorators.attr(type='negative')
    def test_a_bad_field_is_named(self) -> None:
        create = self.admin.aggregates.create_aggregate
        self.assert_refused(exceptions.BadRequest, 'name', create, name='')
        self.assert_refused(exceptions.BadRequest, 'name', create, name='x' * 256)
        self.assert_refused(exceptions.BadRequest, 'colour', create, name='a', colour=1)
        made = self.make_aggregate()
        self.assert_refused(
            exceptions.BadRequest,
            'host',
            self.admin.aggregates.add_host,
            made['id'],
            host='not a host',
        )

    @decorators.idempotent_id('8375820c-0abe-44eb-9e37-6ef51d9ef5a1')
    @decorators.attr(type='negative')
    def test_what_there_is_not_is_not_found(self) -> None:
        aggregates, made = self.admin.aggregates, self.make_aggregate()
        gone = 2**31 - 1
        for ask in (
            lambda: aggregates.show_aggregate(gone),
            lambda: aggregates.update_aggregate(gone, name='b'),
            lambda: aggregates.set_metadata(gone, metadata={'a': 'b'}),
            lambda: aggregates.add_host(gone, host=self.find_host()),
            lambda: aggregates.delete_aggregate(gone),
        ):
            self.assert_refused(exceptions.NotFound, str(gone), ask)
        self.assert_refused(
            exceptions.NotFound, 'nowhere', aggregates.add_host, made['id'], host='nowhere'
        )
        self.assert_refused(
            exceptions.NotFound, 'nowhere', aggregates.remove_host, made['id'], host='nowhere'
        )
