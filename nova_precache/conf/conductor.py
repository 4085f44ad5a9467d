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
        help='Seconds between two looks into the database, for work whose message was lost.',
    ),
    cfg.FloatOpt(
        'claim_lease_seconds',
        default=30,
        min=1,
        help="""
Seconds after which the claims of a conductor that stopped renewing them may be
taken over. They are renewed three times in this time.
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
Times that the hosts of a cell's broker are tried again before the cell is left
alone. Each time, every host in its transport URL is tried.
""",
    ),
    cfg.FloatOpt(
        'stop_timeout_seconds',
        mutable=True,
        default=10,
        min=0,
        help="""
Seconds that a conductor that is told to stop waits for the calls in progress.
What is left is handed back: another conductor joins the transfer.
""",
    ),
    cfg.FloatOpt(
        'cell_refresh_seconds',
        default=60,
        min=1,
        help='Seconds between two looks for cells that were added or disabled.',
    ),
    cfg.FloatOpt(
        'pin_interval_seconds',
        default=60,
        min=0.05,
        help="""
Seconds between two rounds in which the conductors look after the pins. Of several
conductors, one at a time looks after a pin, and none again within half of it.
""",
    ),
    cfg.IntOpt(
        'max_hosts_per_cell',
        default=20000,
        min=1,
        help="""
Most hosts of one cell whose agents may register. It bounds what a compute that
invents host names can add to the database; hosts that are registered already are
served whatever the limit.
""",
    ),
]
