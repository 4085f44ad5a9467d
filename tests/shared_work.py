# SPDX-License-Identifier: Apache-2.0
"""Work that a process needs once, and that tests would repeat for each database and each conf.

SQLAlchemy compiles a statement again for each engine, and oslo.messaging copies its options for
each conf. A service has one of each; a run of tests has thousands, which would spend a third
of its time on that.
"""

import functools

import sqlalchemy as sa
from oslo_messaging import opts as messaging_opts
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite import pysqlite
from sqlalchemy.util import LRUCache

from nova_precache import conf

_MOST_STATEMENTS = 5000
_COMPILED: LRUCache[object, object] = LRUCache(_MOST_STATEMENTS)


class Dialect(pysqlite.SQLiteDialect_pysqlite):
    """SQLite's, whose engines share compiled statements: all dialects of a process are equal."""

    supports_statement_cache = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dialect)

    def __hash__(self) -> int:
        return hash(Dialect)

    @classmethod
    def engine_created(cls, engine: sa.Engine) -> None:
        engine.update_execution_options(compiled_cache=_COMPILED)


def share() -> None:
    """Share this work among all tests of the process."""
    for name in ('sqlite', 'sqlite.pysqlite'):
        registry.register(name, __name__, Dialect.__name__)
    conf.set_defaults()  # of the options that are copied
    vars_of_library = vars(messaging_opts)
    vars_of_library['list_opts'] = functools.cache(messaging_opts.list_opts)
