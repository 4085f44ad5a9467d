# SPDX-License-Identifier: Apache-2.0
"""Reads Nova's ``services`` table in a cell's database.

The rows of ``nova-compute`` show which hosts Nova would call.
"""

import dataclasses
import datetime
import urllib.parse
from collections.abc import Collection, Mapping

import sqlalchemy as sa

from nova_precache.db.engine import expressions, session as db_session, timeouts

_LIMITS = timeouts.TimeLimits(connect_seconds=5, answer_seconds=10, lock_seconds=5)

_SERVICES = sa.table(
    'services',
    sa.column('host', sa.String),
    sa.column('binary', sa.String),
    sa.column('deleted', sa.Integer),
    sa.column('disabled', sa.Boolean),
    sa.column('disabled_reason', sa.String),
    sa.column('forced_down', sa.Boolean),
    sa.column('last_seen_up', sa.DateTime),
    sa.column('created_at', sa.DateTime),
)
_COMPUTES = sa.select(
    _SERVICES.c.host,
    _SERVICES.c.disabled,
    _SERVICES.c.disabled_reason,
    _SERVICES.c.forced_down,
    # A service that has not reported yet counts from its creation, as in Nova.
    sa.func.coalesce(_SERVICES.c.last_seen_up, _SERVICES.c.created_at).label('seen_at'),
    expressions.database_now().label('now'),
).where(
    _SERVICES.c.binary == 'nova-compute',
    _SERVICES.c.deleted == 0,
    _SERVICES.c.host.in_(expressions.keys()),
)
# Nova's mappings name Nova's drivers; these are the ones of this service.
_DRIVERS: Mapping[str, str] = {
    'mysql': 'mysql+pymysql',
    'mariadb': 'mysql+pymysql',
    'postgresql': 'postgresql+psycopg',
}


@dataclasses.dataclass(frozen=True)
class Service:
    """A nova-compute, from its cell's database.

    :ivar seen_at: time of its last report, else of its creation; UTC
    :ivar now: the database's time of the query
    """

    host: str
    disabled: bool
    disabled_reason: str | None
    forced_down: bool
    seen_at: datetime.datetime | None
    now: datetime.datetime

    def unavailable_reason(self, down_seconds: float) -> str | None:
        """Return why its host must not be called, None if it may."""
        if self.forced_down:
            return 'host down: it is forced down'
        if self.seen_at is None:
            return 'host down: it has never reported'
        if self.is_silent(down_seconds):
            return f'host down: last report at {self.seen_at:%Y-%m-%dT%H:%M:%SZ}'
        if self.disabled:
            return f'host disabled: {self.disabled_reason or "no reason is given"}'
        return None

    def is_silent(self, down_seconds: float) -> bool:
        """Return whether it is down because of the time of its last report alone."""
        if self.forced_down or self.seen_at is None:
            return False
        # As in Nova, a report from far in the future does not count as alive.
        return abs((self.now - self.seen_at).total_seconds()) > down_seconds


def connect(url: str) -> sa.Engine:
    """Create an engine for a cell's database, without a connection.

    :raises sqlalchemy.exc.SQLAlchemyError: the URL is invalid
    :raises ImportError: there is no driver for it
    """
    made = sa.make_url(url)
    backend = made.get_backend_name()
    made = made.set(drivername=_DRIVERS.get(backend, made.drivername))
    engine = sa.create_engine(_not_made(made), pool_pre_ping=True, pool_recycle=3600)
    timeouts.limit(engine, _LIMITS)
    return engine


def _not_made(url: sa.URL) -> sa.URL:
    """Open a SQLite file read-only, so that a missing file is not created."""
    if url.get_backend_name() != 'sqlite':
        return url
    file = f'file:{urllib.parse.quote(url.database or "")}'
    return url.set(database=file).update_query_dict({'mode': 'ro', 'uri': 'true'})


def load(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, Service]:
    """Map hosts to their nova-computes; hosts without one are absent."""
    found: dict[str, Service] = {}
    with engine.connect() as connection:
        for chunk in db_session.chunks(sorted(hosts)):
            for row in connection.execute(_COMPUTES, {'keys': chunk}):
                found[row.host] = Service(
                    host=row.host,
                    disabled=bool(row.disabled),
                    disabled_reason=row.disabled_reason,
                    forced_down=bool(row.forced_down),
                    seen_at=row.seen_at,
                    now=row.now,
                )
    # Not every database distinguishes case, but RPC does.
    return {host: found[host] for host in hosts if host in found}
