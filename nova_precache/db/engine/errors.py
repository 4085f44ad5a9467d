# SPDX-License-Identifier: Apache-2.0
"""Database failures as errors of this service, for commands that report them in one line."""

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import exception


@contextlib.contextmanager
def translate_db_errors() -> Iterator[None]:
    """Translate database errors; keep the reason, omit the SQL.

    :raises nova_precache.exception.PrecacheError: the database failed
    """
    try:
        yield
    except exception.DatabaseUnavailable as exc:
        raise exception.PrecacheError(f'The database failed: {exc.reason}') from exc
    except (db_exception.DBError, sa.exc.SQLAlchemyError) as exc:
        reason, _, _ = str(exc).partition('\n')
        raise exception.PrecacheError(f'The database failed: {reason}') from exc
