# SPDX-License-Identifier: Apache-2.0
"""The version documents, and how microversions are negotiated."""

from typing import Any

import pytest


@pytest.mark.parametrize('path', ['/v1', '/v1/'])
def test_precache_document_has_its_own_version(api: Any, path: str) -> None:
    response = api.get(path)
    assert response.json['version']['version'] == '1.0'
    assert response.headers['OpenStack-API-Version'] == 'image-precache 1.0'
    assert response.headers.getall('Vary') == ['OpenStack-API-Version']


def test_links_use_public_endpoint(api: Any, rebuild: Any, conf: Any) -> None:
    conf.set_override('public_endpoint', 'https://cloud.example/precache/', 'api')
    href = rebuild().get('/v1').json['version']['links'][0]['href']
    assert href == 'https://cloud.example/precache/v1/'


def test_links_use_trusted_proxy_headers(api: Any, rebuild: Any, conf: Any) -> None:
    forwarded = {'X-Forwarded-Proto': 'https', 'X-Forwarded-Host': 'cloud.example'}
    conf.set_override('enable_proxy_headers_parsing', True, 'oslo_middleware')
    href = rebuild().get('/v1', headers=forwarded).json['version']['links'][0]['href']
    assert href == 'https://cloud.example/v1/'


@pytest.mark.parametrize(
    ('path', 'service'), [('/v2.1/os-aggregates', 'compute'), ('/v1/requests', 'image-precache')]
)
@pytest.mark.parametrize('version', ['2.' + '1' * 5000, '1' * 5000 + '.1'])
def test_too_long_number_is_no_version(api: Any, path: str, service: str, version: str) -> None:
    response = api.get(path, headers={'OpenStack-API-Version': f'{service} {version}'})
    assert response.status_int == 400
    assert 'is of invalid format' in response.json['badRequest']['message']


def test_precache_api_has_own_versions(api: Any) -> None:
    both = {'OpenStack-API-Version': 'compute 2.81, image-precache latest'}
    response = api.get('/v1/requests', headers=both)
    assert response.status_int == 200
    assert response.headers['OpenStack-API-Version'] == 'image-precache 1.0'
    assert 'X-OpenStack-Nova-API-Version' not in response.headers

    too_new = {'OpenStack-API-Version': 'image-precache 1.1'}
    refused = api.get('/v1/requests', headers=too_new)
    assert refused.status_int == 406
    assert refused.json['notAcceptable']['message'].endswith('maximum is 1.0.')


@pytest.mark.parametrize(
    ('standard', 'legacy', 'expected'),
    [
        ('compute 2.1, COMPUTE 2.41', '2.81', '2.41'),
        ('compute', '2.1, 2.81', '2.81'),
        ('volume 3.0', '2.41', '2.41'),
        ('volume 3.0', '2.41 , latest', '2.81'),
    ],
)
def test_last_named_version_counts(api: Any, standard: str, legacy: str, expected: str) -> None:
    headers = {'OpenStack-API-Version': standard, 'X-OpenStack-Nova-API-Version': legacy}
    response = api.get('/v2.1/os-aggregates', version=None, headers=headers)
    assert response.headers['X-OpenStack-Nova-API-Version'] == expected
    assert response.headers['OpenStack-API-Version'] == f'compute {expected}'
