# SPDX-License-Identifier: Apache-2.0
"""What tempest asks a plugin for: its tests, its options, its clients."""

import pathlib
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg
from tempest import config as tempest_config
from tempest.test_discover import plugins

from nova_precache_tempest_plugin import config

_PACKAGE = pathlib.Path(__file__).resolve().parent


class ImagePrecachePlugin(plugins.TempestPlugin):
    """The entry point ``tempest.test_plugins``."""

    def load_tests(self) -> tuple[str, str]:
        return str(_PACKAGE / 'tests'), str(_PACKAGE.parent)

    def register_opts(self, conf: cfg.ConfigOpts) -> None:
        conf.register_opt(config.AVAILABLE, group='service_available')
        conf.register_group(config.GROUP)
        conf.register_opts(config.OPTIONS, group=config.GROUP)

    def get_opt_lists(self) -> Sequence[tuple[str, Sequence[cfg.Opt]]]:
        return [
            ('service_available', [config.AVAILABLE]),
            (config.GROUP.name, list(config.OPTIONS)),
        ]

    def get_service_clients(self) -> Sequence[dict[str, Any]]:
        return [
            {
                'name': 'image_precache_v1',
                'service_version': 'image_precache.v1',
                'module_path': 'nova_precache_tempest_plugin.services.v1',
                'client_names': ['DocumentsClient', 'HostsClient', 'PinsClient', 'RequestsClient'],
                **tempest_config.service_client_config(config.GROUP.name),
            },
            {
                'name': 'aggregate_images',
                'service_version': 'aggregate_images',
                'module_path': 'nova_precache_tempest_plugin.services.compute',
                'client_names': ['AggregateImagesClient'],
                **tempest_config.service_client_config('compute'),
            },
        ]
