# SPDX-License-Identifier: Apache-2.0
"""The interface through which conductors learn which hosts are alive."""

from collections.abc import Collection, Mapping
from typing import Protocol


class Liveness(Protocol):
    """Implemented by ``db.agents.Agents``, and for Nova by ``cells.liveness.NovaLiveness``."""

    def down(self, hosts: Collection[str]) -> Mapping[str, str]:
        """Map those of the hosts that are known to be down or disabled to the reason."""

    def settling(self, hosts: Collection[str]) -> Collection[str]:
        """Return the silent hosts whose state will be known only after a while."""
