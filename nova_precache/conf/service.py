# SPDX-License-Identifier: Apache-2.0
"""[DEFAULT]: the options of every process of the service."""

import socket

from oslo_config import cfg

from nova_precache import backend

GROUP = None

OPTIONS = [
    cfg.HostAddressOpt(
        'host',
        default=socket.gethostname(),
        sample_default='<current_hostname>',
        help="""
Name of this host in host mappings, aggregates and RPC. Beside nova-compute it
must be the host name that nova-compute uses.
""",
    ),
    cfg.StrOpt(
        'state_path',
        default='/var/lib/nova-precache',
        help='Directory of this host for state that must survive a restart.',
    ),
    # Declared in the module that reads it before this package can be imported.
    backend.OPTION,
    cfg.FloatOpt(
        'long_rpc_timeout',
        default=1800,
        min=1,
        help='Seconds after which a call to a compute is repeated, even if it sends heartbeats.',
    ),
    cfg.FloatOpt(
        'report_interval',
        default=10,
        min=0.1,
        help="""
Seconds between two reports of a compute, a conductor or an API that it runs. A
compute also reports while transfers move: each second, or less often if the
conductors hear many hosts, at the latest after this time, a quarter of
``service_down_time`` or 20 seconds. Thousands of hosts: 20 seconds halve what
the reports cost the conductors.
""",
    ),
    cfg.FloatOpt(
        'service_down_time',
        default=60,
        min=0.2,
        help="""
Seconds without a report after which a compute, a conductor or an API counts as
down, and another agent may take the name of a compute. Time during which no
conductor was connected to the cell of a compute does not count. Must be several
times report_interval and [conductor] heartbeat_write_interval_seconds.
""",
    ),
]
