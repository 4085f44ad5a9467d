# SPDX-License-Identifier: Apache-2.0
"""The ``services`` of one cell's database, which are Nova's and are only read.

Of these rows, those of ``nova-compute`` tell which hosts Nova would call.
"""

import dataclasses
import datetime
import urllib.parse
from collections.abc import Collection, Mapping

import sqlalchemy as sa

from nova_precache.db.engine import session as db_session, timeouts

_LIMITS = timeouts.Limits(connect_seconds=5, answer_seconds=10, lock_seconds=5)

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
    # One that was made and has not reported yet counts from there, as in Nova.
    sa.func.coalesce(_SERVICES.c.last_seen_up, _SERVICES.c.created_at).label('seen_at'),
    db_session.database_now().label('now'),
).where(
    _SERVICES.c.binary == 'nova-compute',
    _SERVICES.c.deleted == 0,
    _SERVICES.c.host.in_(db_session.keys()),
)
# Nova's mappings name the drivers that Nova has; these are of this service.
_DRIVERS: Mapping[str, str] = {
    'mysql': 'mysql+pymysql',
    'mariadb': 'mysql+pymysql',
    'postgresql': 'postgresql+psycopg',
}


@dataclasses.dataclass(frozen=True)
class Service:
    """A nova-compute as its cell knows it.

    :ivar seen_at: when it reported last, by the clock of ``now``; UTC
    """

    host: str
    disabled: bool
    disabled_reason: str | None
    forced_down: bool
    seen_at: datetime.datetime | None
    now: datetime.datetime

    def unavailable_reason(self, down_seconds: float) -> str | None:
        """Say why its host is not called, None where it is."""
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
        """Return whether it is down by the time of its last report alone."""
        if self.forced_down or self.seen_at is None:
            return False
        # As in Nova, a clock that is far ahead is no sign of life.
        return abs((self.now - self.seen_at).total_seconds()) > down_seconds


def connect(url: str) -> sa.Engine:
    """Make an engine for a cell's database; nothing is opened yet.

    :raises sqlalchemy.exc.SQLAlchemyError: the URL cannot be read
    :raises ImportError: there is no driver for it
    """
    made = sa.make_url(url)
    backend = made.get_backend_name()
    made = made.set(drivername=_DRIVERS.get(backend, made.drivername))
    engine = sa.create_engine(_not_made(made), pool_pre_ping=True, pool_recycle=3600)
    timeouts.limit(engine, _LIMITS)
    return engine


def _not_made(url: sa.URL) -> sa.URL:
    """Have a SQLite file only read, and not made where there is none."""
    if url.get_backend_name() != 'sqlite':
        return url
    file = f'file:{urllib.parse.quote(url.database or "")}'
    return url.set(database=file).update_query_dict({'mode': 'ro', 'uri': 'true'})


def load(engine: sa.Engine, hosts: Collection[str]) -> Mapping[str, Service]:
    """Map hosts to their nova-computes; one that has none is left out."""
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
