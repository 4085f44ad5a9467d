# SPDX-License-Identifier: Apache-2.0
"""What the service says of itself, and to whom."""

from tempest.lib import decorators, exceptions

from nova_precache_tempest_plugin.services.v1 import base_client
from nova_precache_tempest_plugin.tests import base


class DocumentsTest(base.BaseTest):
    """Documents and microversions of /v1."""

    @decorators.idempotent_id('88c1fb8a-c83f-44b8-9b94-1123b34a5e2d')
    @decorators.attr(type='smoke')
    def test_the_version_document_names_the_microversions(self) -> None:
        version = self.admin.documents.show_version()['version']
        self.assertEqual('CURRENT', version['status'])
        self.assertEqual('1.0', version['min_version'])
        self.assertRegex(version['version'], r'^1\.\d+$')

    @decorators.idempotent_id('463a4c23-6f1e-44e2-85a2-9b709451b8d7')
    def test_the_openapi_document_needs_no_token(self) -> None:
        url = f'{self.admin.documents.base_url}/openapi.json'
        answer, _ = self.admin.documents.raw_request(url, 'GET', headers={})
        self.assertEqual(200, answer.status)
        document = self.admin.documents.show_openapi()
        self.assertEqual('3.1.0', document['openapi'])
        self.assertIn('/v1/requests/{id}/tasks', document['paths'])

    @decorators.idempotent_id('607a4819-3f5f-4cfc-abfa-8284a9f62f34')
    def test_an_answer_names_its_microversion_and_its_request(self) -> None:
        answer = self.admin.requests.list_requests(limit=1).response
        self.assertEqual('image-precache 1.0', answer['openstack-api-version'])
        self.assertRegex(answer['x-openstack-request-id'], '^req-')

    @decorators.idempotent_id('02e33eb8-c608-40be-a6c5-40e0e169555e')
    @decorators.attr(type='negative')
    def test_other_microversions_are_not_served(self) -> None:
        for version, refusal in (
            ('9.0', exceptions.NotAcceptable),
            ('newest', exceptions.BadRequest),
        ):
            headers = {
                **self.admin.requests.get_headers(),
                base_client.VERSION_HEADER: f'{base_client.SERVICE_TYPE} {version}',
            }
            self.assertRaises(refusal, self.admin.requests.get, 'requests', headers=headers)

    @decorators.idempotent_id('e07b0a3d-7eb6-49cd-b61e-9ce041f40074')
    @decorators.attr(type='negative')
    def test_without_a_good_token_there_is_nothing(self) -> None:
        client = self.admin.requests
        for headers in ({}, {'X-Auth-Token': 'garbage'}):
            answer, _ = client.raw_request(f'{client.base_url}/requests', 'GET', headers=headers)
            self.assertEqual(401, answer.status)
