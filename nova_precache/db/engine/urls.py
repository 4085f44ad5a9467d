# SPDX-License-Identifier: Apache-2.0
"""The URL of a database: what is wrong with it, without its password."""

import pathlib
from collections.abc import Mapping

import sqlalchemy as sa
from oslo_db import exception as db_exception

_UNREADABLE = 'cannot be used; check that it is a URL and that its password is quoted'
_SHOWN = 20


# The tested driver of each backend, its module, and the extra of this package that installs it.
_DRIVERS: Mapping[str, tuple[str, str, str]] = {
    'mysql': ('mysql+pymysql', 'pymysql', 'mysql'),
    'mariadb': ('mariadb+pymysql', 'pymysql', 'mysql'),
    'postgresql': ('postgresql+psycopg', 'psycopg', 'postgresql'),
}


def problem(url: str) -> str | None:
    """Return why no supported and installed driver can use a URL; None if one can."""
    try:
        made = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        return _UNREADABLE
    if made.drivername in {'sqlite', 'sqlite+pysqlite'}:
        return None
    backend, scheme = made.get_backend_name(), repr(made.drivername[:_SHOWN])
    if backend not in _DRIVERS:
        return (
            f'has the scheme {scheme}, but must begin with mysql+pymysql://, '
            'postgresql+psycopg:// or sqlite:///'
        )
    tested, module, extra = _DRIVERS[backend]
    try:
        made.get_dialect().import_dbapi()
    except sa.exc.NoSuchModuleError:
        return f'has the scheme {scheme}, whose driver is unknown; {tested}:// is tested'
    except ImportError as exc:
        remedy = f'install nova-precache[{extra}]'
        if (exc.name or '').partition('.')[0] != module:
            remedy = f'use {tested}:// and {remedy}'
        return f'needs the driver {exc.name}, which is not installed: {remedy}'
    return None


def what_is_wrong(url: str, error: Exception) -> str:
    """Describe why a database cannot be opened, without its URL, which has a password."""
    if (found := problem(url)) is not None:
        return found
    # If the password contains an @, its rest is taken for the host.
    if not isinstance(error, db_exception.DBError | sa.exc.OperationalError) or url.count('@') > 1:
        return _UNREADABLE
    first_line, _, _ = str(error).partition('\n')
    made = sa.make_url(url)
    if made.get_backend_name() != 'sqlite' or not made.database:
        return f'cannot be used: {first_line}'
    file = pathlib.Path(made.database)
    missing = '' if file.parent.is_dir() else f'; there is no directory {file.parent}'
    return f'cannot be used: {file}: {first_line}{missing}'
