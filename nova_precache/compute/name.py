# SPDX-License-Identifier: Apache-2.0
"""Whether the name of a host belongs to this agent, as the conductors know it."""

import threading


class Name:
    """A host name that an agent may lose to another, and get back; safe to use from many threads.

    :ivar agent_id: of this agent
    """

    def __init__(self, host: str, agent_id: str) -> None:
        self.host = host
        self.agent_id = agent_id
        self._condition = threading.Condition()
        self._is_doubtful = False
        self._is_closed = False

    def doubt(self) -> None:
        """Note that a conductor does not know this agent as that of the host."""
        with self._condition:
            self._is_doubtful = True
            self._condition.notify_all()

    def close(self) -> None:
        """End the wait: the process stops."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def wait_doubtful(self) -> bool:
        """Wait until this agent has to ask for the name again; False when the process stops."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._is_doubtful)
            self._is_doubtful = False
            return not self._is_closed
