# SPDX-License-Identifier: Apache-2.0
"""[metrics]: where a process serves its metrics to Prometheus."""

from oslo_config import cfg

GROUP = cfg.OptGroup('metrics', title='Metrics for Prometheus')

OPTIONS = [
    cfg.PortOpt(
        'port',
        default=0,
        help="""
TCP port on which a conductor or a compute serves its metrics over HTTP, under
/metrics. 0 disables metrics. Each process of a host needs its own port.
""",
    ),
    cfg.HostAddressOpt(
        'bind_host',
        default='127.0.0.1',
        help="""
Address to serve the metrics on. Callers are not authenticated: protect any
address other than loopback with a firewall.
""",
    ),
]
