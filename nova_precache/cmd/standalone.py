# SPDX-License-Identifier: Apache-2.0
"""nova-precache-standalone: the whole service in one process, without configuration."""

import pathlib
import sys

from oslo_config import cfg

from nova_precache import backend
from nova_precache.cmd import running
from nova_precache.standalone import service

OPTIONS = [
    cfg.StrOpt(
        'state-dir',
        default=str(pathlib.Path.home() / '.local/state/nova-precache'),
        sample_default='~/.local/state/nova-precache',
        help='Directory for all files: images, caches, database, logs.',
    ),
    cfg.PortOpt('port', default=8774, help='Port of the API; 0 selects a free port.'),
    cfg.IntOpt('cells', default=2, min=1, max=100, help='Number of cells.'),
    cfg.IntOpt(
        'hosts-per-cell', default=2, min=1, max=100, help='Number of compute hosts in each cell.'
    ),
    cfg.URIOpt(
        'image-url',
        schemes=['http', 'https'],
        help='URL of the image service (default: a Glance is started).',
    ),
]


def main() -> None:
    running.exit_with(_main)


def _main() -> int:
    conf = running.read_configuration(sys.argv[1:], OPTIONS, default_config_files=[])
    backend.refuse_eventlet(conf, 'nova-precache-standalone')
    shape = service.Shape(
        state_dir=pathlib.Path(conf.state_dir),
        port=conf.port,
        cells=conf.cells,
        hosts_per_cell=conf.hosts_per_cell,
        image_url=conf.image_url,
        config_files=conf.config_file,
        config_dirs=conf.config_dir,
    )
    standalone = service.Standalone(shape)
    running.run([standalone], ready=lambda: print(f'Ready: {standalone.ready_file}', flush=True))
    return 0
