# SPDX-License-Identifier: Apache-2.0
"""The plugin interface of python-openstackclient, which requires these names.

Every ``openstack`` command imports this module, so it imports little.
"""

import argparse
from typing import TYPE_CHECKING, Any

from osc_lib import utils

if TYPE_CHECKING:
    from nova_precache.osc.client import ApiClient

API_NAME = 'image_precache'
API_VERSION_OPTION = 'os_image_precache_api_version'
DEFAULT_API_VERSION = '1'
API_VERSIONS = ('1', '1.0')


def make_client(instance: Any) -> 'ApiClient':
    """Create the client that commands use as ``client_manager.image_precache``."""
    from keystoneauth1 import adapter

    from nova_precache.osc import client

    version = str(instance._api_version[API_NAME])
    config = instance.sdk_connection.config
    return client.ApiClient(
        adapter.Adapter(
            session=instance.session,
            service_type=client.SERVICE_TYPE,
            interface=instance.interface,
            region_name=instance.region_name,
            endpoint_override=config.get_endpoint(client.SERVICE_TYPE),
            default_microversion=version if '.' in version else None,
        )
    )


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        '--os-image-precache-api-version',
        metavar='<image-precache-api-version>',
        default=utils.env('OS_IMAGE_PRECACHE_API_VERSION'),
        help='Image pre-caching API version, '
        f'default={DEFAULT_API_VERSION} (Env: OS_IMAGE_PRECACHE_API_VERSION)',
    )
    return parser
