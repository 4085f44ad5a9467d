# SPDX-License-Identifier: Apache-2.0
"""Failures of a database as errors of this service, for commands that tell them in a line."""

import contextlib
from collections.abc import Iterator

import sqlalchemy as sa
from oslo_db import exception as db_exception

from nova_precache import exception


@contextlib.contextmanager
def translate_db_errors() -> Iterator[None]:
    """Have what a database refuses within be an error with its reason, but without the statement.

    :raises nova_precache.exception.PrecacheError: it was refused
    """
    try:
        yield
    except exception.DatabaseUnavailable as exc:
        raise exception.PrecacheError(f'The database failed: {exc.reason}') from exc
    except (db_exception.DBError, sa.exc.SQLAlchemyError) as exc:
        reason, _, _ = str(exc).partition('\n')
        raise exception.PrecacheError(f'The database failed: {reason}') from exc
