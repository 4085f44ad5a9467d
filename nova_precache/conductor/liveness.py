# SPDX-License-Identifier: Apache-2.0
"""The seam between conductors and whatever knows which hosts are alive."""

from collections.abc import Collection, Mapping
from typing import Protocol


class Liveness(Protocol):
    """``db.agents.Agents`` of our own computes, ``cells.liveness.NovaLiveness`` of stock ones."""

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map those of the hosts that are known not to be called to the reason."""

    def settling(self, hosts: Collection[str]) -> Collection[str]:
        """Give the silent hosts of which it is known in a while whether they are down."""
