# SPDX-License-Identifier: Apache-2.0
"""Opens the inventory of the Nova beside this service; its database is never written."""

import sqlalchemy as sa
from oslo_config import cfg

from nova_precache import exception
from nova_precache.cells import inventory, models, templates
from nova_precache.db.engine import errors, session as db_session, timeouts

GROUP = 'api_database'


def open_inventory(conf: cfg.ConfigOpts, own: db_session.Database) -> inventory.Inventory:
    """Open Nova's inventory if ``[api_database]`` is set, else this service's own.

    :param own: the database of this service; closing it closes Nova's, too
    :raises nova_precache.exception.ConfigError: Nova's inventory cannot be read
    """
    if not conf.api_database.connection:
        return inventory.Inventory(own)
    filling = templates.Filling(
        transport_url=conf.api_database.template_transport_url or conf.transport_url,
        # Not [database] connection, which is not Nova's.
        database_connection=conf.api_database.template_database_connection,
    )
    nova = connect(conf, own.limits)
    own.closes(nova.dispose)
    return inventory.Inventory(nova, writable=False, fill_cell=filling.fill_cell)


def connect(
    conf: cfg.ConfigOpts, limits: timeouts.TimeLimits = timeouts.SERVICE
) -> db_session.Database:
    """Open Nova's API database read-only.

    :raises nova_precache.exception.ConfigError: it cannot be opened, or is not an API database
        of Nova
    """
    if conf.api_database.connection == conf.database.connection:
        raise exception.ConfigError(
            '[api_database] connection names the database of this service, not that of Nova'
        )
    database = db_session.connect(conf, GROUP, read_only=True, limits=limits)
    with db_session.closed_on_failure(database), errors.translate_db_errors():
        _require_inventory(database)
    return database


def _require_inventory(database: db_session.Database) -> None:
    tables = sa.inspect(database.engine)
    for name in models.InventoryBase.metadata.tables:
        if not tables.has_table(name):
            raise exception.ConfigError(
                '[api_database] connection does not name an API database of Nova: table '
                f'{name} is missing'
            )
