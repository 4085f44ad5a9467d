# SPDX-License-Identifier: Apache-2.0
"""The status of a cell, by what the conductors hear of its broker."""

import datetime

from nova_precache import model
from nova_precache.db import hearing


def judge(
    cell: model.Cell,
    heard: hearing.Heard | None,
    now: datetime.datetime,
    *,
    has_conductor: bool,
) -> tuple[model.CellStatus, str | None]:
    """Return the status of a cell, and why it is not up.

    :param now: by the clock of ``heard``
    :param has_conductor: a conductor is up, so that a living cell would be heard
    """
    if cell.disabled:
        return model.CellStatus.DISABLED, cell.disabled_reason
    if cell.disabled_reason is not None:
        return model.CellStatus.DOWN, cell.disabled_reason
    if heard is not None and heard.is_heard(now):
        return model.CellStatus.UP, None
    if not has_conductor:
        return model.CellStatus.UNKNOWN, 'no conductor is up'
    if heard is None:
        return model.CellStatus.UNKNOWN, 'no conductor has connected to its broker yet'
    since = f'{heard.until:%Y-%m-%dT%H:%M:%SZ}'
    return model.CellStatus.DOWN, f'no message of its broker has reached a conductor since {since}'
