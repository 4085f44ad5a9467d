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
URL of the API database of a Nova, as in its nova.conf. If set, aggregates,
cells and host mappings are read from that Nova. They are never written: a
database user with read access suffices, and ``/v2.1`` refuses to change
aggregates. Unset, this service keeps them in its own database. Computes do not
use this option.
""",
    ),
    cfg.StrOpt(
        'template_database_connection',
        secret=True,
        help="""
URL whose parts replace the fields of a ``database_connection`` template in
Nova's cell mappings, such as
``{scheme}://{username}:{password}@{hostname}/nova``. Use the value of
``[database] connection`` in the nova.conf of Nova's controllers. Unset, the
databases of such cells cannot be read.
""",
    ),
    cfg.StrOpt(
        'template_transport_url',
        secret=True,
        help="""
The same for a ``transport_url`` template. Use the value of ``[DEFAULT]
transport_url`` in the nova.conf of Nova's controllers. Unset, the
``transport_url`` of this service is used.
""",
    ),
    *(copy.deepcopy(opt) for opt in db_options.database_opts if opt.name in _OF_OSLO_DB),
]
