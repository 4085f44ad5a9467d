# SPDX-License-Identifier: Apache-2.0
"""Draws the transitions of requests, tasks and jobs for the documentation.

``python -m tools.state_diagrams`` writes ``doc/source/states.inc``; a test compares it.
"""

import itertools
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

from nova_precache import states

MAX_COLUMNS = 90
PAGE = pathlib.Path(__file__).resolve().parents[1] / 'doc' / 'source' / 'states.inc'
KINDS: dict[str, states.Transitions[Any]] = {
    'A request': states.REQUESTS,
    'A task': states.TASKS,
    'A job': states.JOBS,
}

# An event and the statuses that it may lead to.
Exit = tuple[states.Event, tuple[str, ...]]


def draw() -> str:
    """Return the diagrams of all kinds, as reStructuredText."""
    return '\n'.join(
        f'{kind}:\n\n.. code-block:: text\n\n{"".join(_lines(transitions))}'
        for kind, transitions in KINDS.items()
    )


def _lines(transitions: states.Transitions[Any]) -> Iterator[str]:
    """Draw each status with its exits; those with the same exits are drawn as one."""
    exits = _exits(transitions)
    width = max(len(event) for event in states.Event)
    for same in dict.fromkeys(exits.values()):
        names = [name for name, its in exits.items() if its == same]
        yield f'    {", ".join(names)}\n'
        for number, (event, targets) in enumerate(same, 1):
            corner = '└' if number == len(same) else '├'
            side = ' ' if number == len(same) else '│'
            line = '─' * (width - len(event) + 1)
            yield textwrap.fill(
                ', '.join(targets),
                MAX_COLUMNS,
                initial_indent=f'      {corner}─ {event} {line}► ',
                subsequent_indent=f'      {side}{" " * (width + 6)}',
            )
            yield '\n'
        yield '\n'


def _exits(transitions: states.Transitions[Any]) -> dict[str, tuple[Exit, ...]]:
    """Map each status, and none as "new", to the events that it has an arrow for."""
    found: dict[str, tuple[Exit, ...]] = {}
    for origin in dict.fromkeys(arrow.origin for arrow in transitions.arrows):
        arrows = [arrow for arrow in transitions.arrows if arrow.origin == origin]
        by_event = itertools.groupby(arrows, key=lambda arrow: arrow.event)
        found[origin or 'new'] = tuple(
            (event, tuple(arrow.target for arrow in same)) for event, same in by_event
        )
    return found


if __name__ == '__main__':
    PAGE.write_text(draw())
