# SPDX-License-Identifier: Apache-2.0
"""The version documents, and how microversions are negotiated."""

from typing import Any

import pytest


def test_the_root_lists_both_apis_to_everybody(api: Any) -> None:
    response = api.get('/')
    assert response.status_int == 200
    assert [
        (version['id'], version['min_version'], version['version'], version['links'])
        for version in response.json['versions']
    ] == [
        ('v2.1', '2.1', '2.81', [{'rel': 'self', 'href': 'http://api.example:8774/v2.1/'}]),
        ('v1.0', '1.0', '1.0', [{'rel': 'self', 'href': 'http://api.example:8774/v1/'}]),
    ]
    assert 'OpenStack-API-Version' not in response.headers


@pytest.mark.parametrize('path', ['/v2.1', '/v2.1/'])
def test_the_compute_document_tells_how_far_microversions_go(api: Any, path: str) -> None:
    response = api.get(path, version=None)
    assert response.status_int == 200
    document = response.json['version']
    assert document['id'] == 'v2.1'
    assert document['status'] == 'CURRENT'
    assert (document['min_version'], document['version']) == ('2.1', '2.81')
    assert document['links'][0] == {'rel': 'self', 'href': 'http://api.example:8774/v2.1/'}
    assert response.headers['OpenStack-API-Version'] == 'compute 2.1'


@pytest.mark.parametrize('path', ['/v1', '/v1/'])
def test_the_precache_document_is_in_its_own_version(api: Any, path: str) -> None:
    response = api.get(path)
    assert response.json['version']['version'] == '1.0'
    assert response.headers['OpenStack-API-Version'] == 'image-precache 1.0'
    assert response.headers.getall('Vary') == ['OpenStack-API-Version']


def test_links_follow_the_public_endpoint(api: Any, rebuild: Any, conf: Any) -> None:
    conf.set_override('public_endpoint', 'https://cloud.example/precache/', 'api')
    href = rebuild().get('/v1').json['version']['links'][0]['href']
    assert href == 'https://cloud.example/precache/v1/'


def test_links_follow_a_proxy_where_its_headers_are_trusted(
    api: Any, rebuild: Any, conf: Any
) -> None:
    forwarded = {'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': 'cloud.example'}
    conf.set_override('enable_proxy_headers_parsing', True, 'oslo_middleware')
    href = rebuild().get('/v1', headers=forwarded).json['version']['links'][0]['href']
    assert href == 'https://cloud.example/v1/'


@pytest.mark.parametrize(
    ('headers', 'version'),
    [
        ({}, '2.1'),
        ({'OpenStack-API-Version': 'compute 2.41'}, '2.41'),
        ({'openstack-api-version': 'Compute   2.41 '}, '2.41'),
        ({'X-OpenStack-Nova-API-Version': '2.41'}, '2.41'),
        ({'OpenStack-API-Version': 'compute latest'}, '2.81'),
        ({'X-OpenStack-Nova-API-Version': 'latest'}, '2.81'),
        ({'OpenStack-API-Version': 'volume 3.0'}, '2.1'),
        ({'OpenStack-API-Version': 'volume 3.0, compute 2.80'}, '2.80'),
        ({'OpenStack-API-Version': 'compute 2.2, compute 2.80'}, '2.80'),
        ({'OpenStack-API-Version': 'compute 2.2', 'X-OpenStack-Nova-API-Version': '2.3'}, '2.2'),
        ({'OpenStack-API-Version': 'compute'}, '2.1'),
    ],
)
def test_the_answer_names_the_version_that_was_asked_for(
    api: Any, headers: dict[str, str], version: str
) -> None:
    response = api.get('/v2.1/os-aggregates', version=None, headers=headers)
    assert response.status_int == 200
    assert response.headers['OpenStack-API-Version'] == f'compute {version}'
    assert response.headers['X-OpenStack-Nova-API-Version'] == version
    assert response.headers.getall('Vary') == [
        'OpenStack-API-Version',
        'X-OpenStack-Nova-API-Version',
    ]


@pytest.mark.parametrize('version', ['2.0', '2.82', '3.0', '1.1'])
def test_a_version_out_of_range_is_not_acceptable(api: Any, version: str) -> None:
    response = api.get('/v2.1/os-aggregates', version=version)
    assert response.status_int == 406
    assert response.json == {
        'computeFault': {
            'code': 406,
            'message': f'Version {version} is not supported by the API. '
            'Minimum is 2.1 and maximum is 2.81.',
        }
    }
    assert response.headers['OpenStack-API-Version'] == f'compute {version}'


@pytest.mark.parametrize('version', ['2', '2.01', 'x', '2.1.1', 'newest', '2.x'])
def test_nonsense_instead_of_a_version_is_a_bad_request(api: Any, version: str) -> None:
    response = api.get('/v2.1/os-aggregates', version=version)
    assert response.status_int == 400
    assert response.json == {
        'badRequest': {
            'code': 400,
            'message': f'API Version String {version} is of invalid format. '
            'Must be of format MajorNum.MinorNum.',
        }
    }
    assert 'OpenStack-API-Version' not in response.headers


def test_the_precache_api_has_versions_of_its_own(api: Any) -> None:
    both = {'OpenStack-API-Version': 'compute 2.81, image-precache latest'}
    response = api.get('/v1/requests', headers=both)
    assert response.status_int == 200
    assert response.headers['OpenStack-API-Version'] == 'image-precache 1.0'
    assert 'X-OpenStack-Nova-API-Version' not in response.headers

    too_new = {'OpenStack-API-Version': 'image-precache 1.1'}
    refused = api.get('/v1/requests', headers=too_new)
    assert refused.status_int == 406
    assert refused.json['notAcceptable']['message'].endswith('maximum is 1.0.')
