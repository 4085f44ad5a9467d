# SPDX-License-Identifier: Apache-2.0
"""Asks the brokers and the databases of cells, many at once and each for a short time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from concurrent import futures

from oslo_config import cfg

from nova_precache import exception, model, rpc
from nova_precache.cells import services
from nova_precache.db.engine import errors, urls

ASK_SECONDS = 5.0
# A hundred cells that do not answer take about two turns.
AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a broker or a database cannot be used.

    :ivar is_refused: it will not be better by itself: an option or a right must be changed
    """

    reason: str
    is_refused: bool


Ask = Callable[[], Problem | None]


def ask_all(asks: Mapping[str, Ask]) -> Mapping[str, Problem]:
    """Map the names of those that cannot be used to their problems."""
    if not asks:
        return {}
    with futures.ThreadPoolExecutor(min(len(asks), AT_ONCE), thread_name_prefix='ask') as pool:
        asked = {name: pool.submit(ask) for name, ask in asks.items()}
    answers = ((name, each.result()) for name, each in asked.items())
    return {name: problem for name, problem in answers if problem is not None}


def broker(conf: cfg.ConfigOpts, cell: model.Cell) -> Ask:
    """Return a function that asks the broker of a cell to take a message."""
    return functools.partial(_ask_broker, conf, cell)


def database(cell: model.Cell) -> Ask:
    """Return a function that reads from the database of a cell, as Nova's services do."""
    return functools.partial(_ask_database, cell)


def _ask_broker(conf: cfg.ConfigOpts, cell: model.Cell) -> Problem | None:
    if rpc.describe_url(conf, cell.transport_url) in {'', rpc.UNREADABLE}:
        return Problem(cell.transport_problem or 'the URL cannot be parsed', is_refused=True)
    try:
        transport = rpc.connect(conf, cell.transport_url, f'cell {cell.name}')
    except exception.ConfigError as exc:
        return Problem(str(exc), is_refused=True)
    try:
        transport.probe(ASK_SECONDS)
    except exception.PrecacheError as exc:
        return Problem(str(exc), isinstance(exc, exception.BrokerRefused | exception.ConfigError))
    finally:
        transport.retire()
    return None


def _ask_database(cell: model.Cell) -> Problem | None:
    if not cell.database_connection:
        return Problem(cell.database_problem or 'its mapping has no database URL', is_refused=True)
    try:
        engine = services.connect(cell.database_connection)
        try:
            services.load(engine, [''])
        finally:
            engine.dispose()
    except Exception as exc:  # noqa: BLE001 - each driver has its own error for a bad URL
        is_away = isinstance(errors.translate(exc), exception.DatabaseUnavailable)
        reason = urls.what_is_wrong(cell.database_connection, exc)
        return Problem(reason, is_refused=not is_away)
    return None
