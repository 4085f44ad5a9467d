# SPDX-License-Identifier: Apache-2.0
"""nova-precache-manage db: sync the schema, and purge old requests."""

from oslo_config import cfg

from nova_precache.db.engine import schema, session, timeouts
from nova_precache.wiring import common


def sync(conf: cfg.ConfigOpts) -> int:
    with session.connect(conf, limits=timeouts.COMMAND) as database:
        schema.sync(database)
    print('The database is up to date.')
    return 0


def version(conf: cfg.ConfigOpts) -> int:
    with session.connect(conf, limits=timeouts.COMMAND) as database:
        found = schema.find(database)
    print(f'{found.revision or "none"} (this release has {found.newest})')
    return 0


def purge(conf: cfg.ConfigOpts) -> int:
    days = conf.command.age_days
    if days is None:
        days = conf.image_cache.request_retention_days
    with schema.open_current(conf, timeouts.COMMAND) as database:
        purged = common.request_store(conf, database).purge(days)
    print(f'Requests purged: {purged}')
    return 0
