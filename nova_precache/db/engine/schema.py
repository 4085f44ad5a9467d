# SPDX-License-Identifier: Apache-2.0
"""Migrates a database to the current schema, and refuses Nova's."""

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
_OLDEST_MARIADB = 10, 6  # the first with JSON_TABLE


@dataclasses.dataclass(frozen=True)
class Found:
    """The schema revision of a database, and that of this release.

    :ivar revision: None if it has no tables of this service
    :ivar is_newer: it is not known to this release
    """

    revision: str | None
    newest: str
    is_older: bool
    is_newer: bool


def find(database: db_session.Database) -> Found:
    """Read the schema revision of a database."""
    scripts = alembic.script.ScriptDirectory.from_config(_alembic_config())
    with database.engine.connect() as connection:
        options = {'version_table': VERSION_TABLE}
        found = migration.MigrationContext.configure(connection, opts=options)
        revision = found.get_current_revision()
    newest = set(scripts.get_heads())
    older = {each.revision for each in scripts.walk_revisions()} - newest
    is_newer = revision is not None and revision not in older | newest
    return Found(revision, ', '.join(sorted(newest)), revision in older, is_newer)


def require(database: db_session.Database) -> None:
    """Check that a database has the schema of this release or a later one.

    A later one is accepted: releases are mixed while a service is upgraded.

    :raises nova_precache.exception.ConfigError: it has no tables of this service, or old ones, or
        its server is too old
    """
    found = find(database)
    _require_server(database)
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
    conf: cfg.ConfigOpts, limits: timeouts.TimeLimits = timeouts.SERVICE
) -> db_session.Database:
    """Open the configured database and check its schema.

    :param limits: how long to wait for its server
    :raises nova_precache.exception.ConfigError: it cannot be opened, or has no or an old schema
    """
    database = db_session.connect(conf, limits=limits)
    with db_session.closed_on_failure(database), errors.translate_db_errors():
        require(database)
    return database


def sync(database: db_session.Database) -> None:
    """Run the pending migrations; safe to repeat.

    :raises nova_precache.exception.ConfigError: the database is Nova's, or of a later release, or
        its server is too old
    """
    if sa.inspect(database.engine).has_table(_NOVA_TABLE):
        raise exception.ConfigError(
            '[database] connection names a database of Nova (it has a table '
            f'{_NOVA_TABLE}); this service needs a database of its own'
        )
    found = find(database)
    _require_server(database)
    if found.is_newer:
        raise exception.ConfigError(
            f'the tables of this service are of a later release (revision {found.revision}, this '
            f'one has {found.newest}); install that release'
        )
    with database.engine.begin() as connection:
        config = _alembic_config()
        config.attributes['connection'] = connection
        alembic.command.upgrade(config, 'head')


def _require_server(database: db_session.Database) -> None:
    """Refuse a server that is too old; its version is known once it was connected to."""
    dialect = database.engine.dialect
    version = getattr(dialect, 'server_version_info', None) or ()
    if getattr(dialect, 'is_mariadb', False) and version[:2] < _OLDEST_MARIADB:
        raise exception.ConfigError(
            f'[database] connection names a MariaDB {".".join(map(str, version))}; this service '
            f'needs {".".join(map(str, _OLDEST_MARIADB))} or newer'
        )


def _alembic_config() -> alembic.config.Config:
    config = alembic.config.Config()
    config.set_main_option('script_location', str(_MIGRATIONS))
    return config
