# SPDX-License-Identifier: Apache-2.0
"""The cells that the API knows by name, also while the inventory is away."""

import dataclasses

from nova_precache import exception, model
from nova_precache.cells import names

CELL = model.Cell('c1', 'site', 'fake:///site')


@dataclasses.dataclass
class Cells:
    """An inventory whose database may be away."""

    cells: list[model.Cell]
    is_away: bool = False
    now: float = 0

    def list_cells(self) -> list[model.Cell]:
        if self.is_away:
            raise exception.DatabaseUnavailable('no route to host')
        return self.cells

    def known(self) -> names.CellNames:
        return names.CellNames(self, lambda: self.now)  # type: ignore[arg-type]


def test_unnamed_cells_have_no_name() -> None:
    unnamed = dataclasses.replace(CELL, uuid='c2', name='')
    known = Cells([CELL, unnamed]).known()

    assert known.load() == {'c1': 'site'}
    assert known.cells() == {'c1': CELL, 'c2': unnamed}


def test_cells_reloaded_after_a_while() -> None:
    inventory = Cells([])
    known = inventory.known()
    assert known.cells() == {}
    inventory.cells = [CELL]
    assert known.cells() == {}

    inventory.now = names.KEPT_SECONDS

    assert known.cells() == {'c1': CELL}


def test_known_cells_outlast_outage() -> None:
    inventory = Cells([CELL])
    known = inventory.known()
    assert known.load() == {'c1': 'site'}

    inventory.is_away, inventory.now = True, names.KEPT_SECONDS

    assert known.load() == {'c1': 'site'}
    assert known.cells() == {'c1': CELL}
