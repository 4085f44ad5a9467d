# SPDX-License-Identifier: Apache-2.0
"""[api_database]: the inventory of a Nova beside which this service runs."""

import copy

from oslo_config import cfg
from oslo_db import options as db_options

GROUP = cfg.OptGroup('api_database', title="Nova's API database")

# The other options of oslo.db have no effect on a database that is only read.
_OF_OSLO_DB = frozenset(
    {
        'connection_recycle_time',
        'max_overflow',
        'max_pool_size',
        'max_retries',
        'pool_timeout',
        'retry_interval',
    }
)

OPTIONS = [
    cfg.StrOpt(
        'connection',
        secret=True,
        help="""
URL of the API database of a Nova, as this option in its nova.conf. When it is
set, aggregates, cells and host mappings are those of that Nova. They are only
read, so that a user who may do no more is enough, and ``/v2.1`` refuses to
change aggregates. Unset, they are kept in this service's own database.
Computes need neither.
""",
    ),
    cfg.StrOpt(
        'template_database_connection',
        secret=True,
        help="""
URL whose parts fill in a ``database_connection`` of Nova's cell mappings that
is a template, such as ``{scheme}://{username}:{password}@{hostname}/nova``:
what ``[database] connection`` is in the nova.conf of Nova's controllers.
Unset, the databases of such cells cannot be read.
""",
    ),
    cfg.StrOpt(
        'template_transport_url',
        secret=True,
        help="""
The same for a ``transport_url`` that is a template: what ``transport_url`` in
``[DEFAULT]`` is in the nova.conf of Nova's controllers. Unset, it is that of
this service.
""",
    ),
    *(copy.deepcopy(opt) for opt in db_options.database_opts if opt.name in _OF_OSLO_DB),
]
