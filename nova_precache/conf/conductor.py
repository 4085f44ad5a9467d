# SPDX-License-Identifier: Apache-2.0
"""[conductor]: how work is claimed and watched."""

from oslo_config import cfg

GROUP = cfg.OptGroup('conductor', title='The conductor')

OPTIONS = [
    cfg.FloatOpt(
        'poll_interval_seconds',
        mutable=True,
        default=5,
        min=0.05,
        help="""
Seconds between two polls of the database for work whose message was lost, and,
while a pin is filled, for its work that another conductor has ended.
""",
    ),
    cfg.FloatOpt(
        'claim_lease_seconds',
        default=30,
        min=1,
        help="""
Seconds after which the claims of a conductor that stopped renewing them may be
taken over. A conductor renews its claims three times in this period.
""",
    ),
    cfg.FloatOpt(
        'progress_write_interval_seconds',
        default=1,
        min=0.05,
        help='Seconds between two bulk writes of progress.',
    ),
    cfg.FloatOpt(
        'heartbeat_write_interval_seconds',
        default=5,
        min=0.05,
        help='Seconds between two bulk writes of the reports of computes.',
    ),
    cfg.IntOpt(
        'plan_chunk_tasks',
        default=1000,
        min=1,
        help='Tasks that one transaction of the planner writes.',
    ),
    cfg.IntOpt(
        'rpc_connect_retries',
        default=1,
        min=0,
        help="""
Number of times that the connection to a cell's broker is retried before calls
to the cell are suspended. Each retry tries every host in its transport URL.
""",
    ),
    cfg.FloatOpt(
        'stop_timeout_seconds',
        mutable=True,
        default=10,
        min=0,
        help="""
Seconds that a stopping conductor waits for the calls in progress. It releases
the unfinished ones, so that another conductor joins the transfers.
""",
    ),
    cfg.FloatOpt(
        'cell_refresh_seconds',
        default=60,
        min=1,
        help='Seconds between two checks for added or disabled cells.',
    ),
    cfg.FloatOpt(
        'pin_interval_seconds',
        default=60,
        min=0.05,
        help="""
Seconds between two rounds in which the conductors check the pins on all hosts.
One conductor at a time checks a pin, and none starts a round for it again within
half of this time. Between two rounds, pins that lack files are filled as slots of
``[image_cache] precache_concurrency`` become free.
""",
    ),
    cfg.IntOpt(
        'service_retention_days',
        mutable=True,
        default=7,
        min=1,
        help='Days for which a conductor or an API is listed that does not report any longer.',
    ),
    cfg.IntOpt(
        'max_hosts_per_cell',
        default=20000,
        min=1,
        help="""
Maximum number of hosts of one cell whose agents may register. It limits the
rows that a compute that invents host names can add to the database. Hosts that
are already registered are served regardless of the limit.
""",
    ),
]
