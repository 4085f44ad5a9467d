# SPDX-License-Identifier: Apache-2.0
"""Brings a database to the current schema, and keeps away from Nova's."""

import dataclasses
import pathlib

import alembic.command
import alembic.config
import alembic.script
import sqlalchemy as sa
from alembic.runtime import migration
from oslo_config import cfg

from nova_precache import exception
from nova_precache.db.engine import errors, session as db_session, timeouts

VERSION_TABLE = 'precache_alembic_version'
_NOVA_TABLE = 'request_specs'
_MIGRATIONS = pathlib.Path(__file__).parents[1] / 'migrations'


@dataclasses.dataclass(frozen=True)
class Found:
    """The schema that a database has, beside that of this release.

    :ivar revision: None: it has no tables of this service
    :ivar is_older: False also where it is of a later release
    """

    revision: str | None
    newest: str
    is_older: bool


def find(database: db_session.Database) -> Found:
    """Look at which schema a database has."""
    scripts = alembic.script.ScriptDirectory.from_config(_alembic_config())
    with database.engine.connect() as connection:
        options = {'version_table': VERSION_TABLE}
        found = migration.MigrationContext.configure(connection, opts=options)
        revision = found.get_current_revision()
    newest = set(scripts.get_heads())
    older = {each.revision for each in scripts.walk_revisions()} - newest
    return Found(revision, ', '.join(sorted(newest)), revision in older)


def require(database: db_session.Database) -> None:
    """Refuse a database that has not been brought to the schema of this release.

    One that a later release has brought further is taken: releases are mixed while
    a service is upgraded.

    :raises nova_precache.exception.ConfigError: it has no tables of this service, or old ones
    """
    found = find(database)
    if found.revision is None:
        raise exception.ConfigError(
            'the database has no tables of this service; run nova-precache-manage db sync'
        )
    if found.is_older:
        raise exception.ConfigError(
            f'the tables of this service are of an earlier release (revision {found.revision}); '
            'run nova-precache-manage db sync'
        )


def open_current(
    conf: cfg.ConfigOpts, limits: timeouts.Limits = timeouts.SERVICE
) -> db_session.Database:
    """Open the configured database, which has been brought to the schema of this release.

    :param limits: for how long its server is waited for
    :raises nova_precache.exception.ConfigError: it cannot be opened, or was not
    """
    database = db_session.connect(conf, limits=limits)
    with db_session.closed_on_failure(database), errors.translate_db_errors():
        require(database)
    return database


def sync(database: db_session.Database) -> None:
    """Run the migrations that the database has not seen; safe to repeat.

    :raises nova_precache.exception.ConfigError: the database is Nova's
    """
    if sa.inspect(database.engine).has_table(_NOVA_TABLE):
        raise exception.ConfigError(
            '[database] connection names a database of Nova (it has a table '
            f'{_NOVA_TABLE}); this service needs a database of its own'
        )
    with database.engine.begin() as connection:
        config = _alembic_config()
        config.attributes['connection'] = connection
        alembic.command.upgrade(config, 'head')


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option('script_location', str(_MIGRATIONS))
    return config
