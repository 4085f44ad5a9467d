# SPDX-License-Identifier: Apache-2.0
"""The page about the pipeline names each part of it, in order; the samples configure them."""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from nova_precache import conf as configuration, policy
from nova_precache.api import app, auth, request

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'doc' / 'source' / 'pipeline.rst').read_text()
SAMPLE = ROOT / 'etc' / 'nova-precache' / 'nova-precache.conf.sample'


@pytest.fixture
def services(tmp_path: pathlib.Path) -> request.Services:
    enforcer = policy.Enforcer(configuration.new(config_files=[]))
    unused: dict[str, Any] = {field.name: None for field in dataclasses.fields(request.Services)}
    return request.Services(**{**unused, 'enforcer': enforcer})


def test_page_names_parts_in_order(services: request.Services) -> None:
    conf = _conf('keystone')
    application = app.build(conf, services)
    protected = auth.protect(lambda *_: [], conf, services.enforcer)
    parts = [*_names(application), *_names(protected)]
    open_to_all = _names(auth.protect(lambda *_: [], _conf('noauth2'), services.enforcer))

    documented = re.findall(r'^``(\w+)``  +\S', PAGE, re.MULTILINE)

    assert documented == [*parts, *open_to_all, 'Router']


def _conf(strategy: str) -> Any:
    conf = configuration.new(config_files=[])
    conf.set_override('auth_strategy', strategy, 'api')
    if strategy == 'keystone':
        auth.auth_token.AuthProtocol(None, {'oslo_config_config': conf})
        conf.set_override('auth_type', 'none', 'keystone_authtoken')
    return conf


def _names(application: Any) -> Iterator[str]:
    """Return the parts that a request passes, from the outside in."""
    for attribute in ('application', '_application', '_app'):
        if hasattr(application, attribute):
            yield type(application).__name__
            yield from _names(getattr(application, attribute))
            return


@pytest.mark.parametrize(
    ('section', 'option'),
    [
        ('keystone_authtoken', 'www_authenticate_uri'),
        ('keystone_authtoken', 'auth_type'),
        ('oslo_policy', 'policy_file'),
        ('oslo_middleware', 'enable_proxy_headers_parsing'),
        ('oslo_middleware', 'max_request_body_size'),
        ('cors', 'allowed_origin'),
        ('healthcheck', 'ignore_proxied_requests'),
    ],
)
def test_sample_configures_each_part(section: str, option: str) -> None:
    found = SAMPLE.read_text().partition(f'\n[{section}]\n')[2].partition('\n\n[')[0]
    assert f'\n#{option} = ' in found


def test_sample_file_sets_nothing() -> None:
    conf = configuration.new(config_files=[str(SAMPLE)])
    assert conf.api.auth_strategy == configuration.new(config_files=[]).api.auth_strategy
    assert all(
        line.startswith(('#', '[')) for line in SAMPLE.read_text().splitlines() if line.strip()
    )
