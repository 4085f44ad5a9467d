# SPDX-License-Identifier: Apache-2.0
"""Tracks whether this agent is registered for its host name."""

import threading


class Name:
    """A host name, which an agent may lose to another and get back; thread-safe.

    :ivar agent_id: of this agent
    """

    def __init__(self, host: str, agent_id: str) -> None:
        self.host = host
        self.agent_id = agent_id
        self._condition = threading.Condition()
        self._is_doubtful = False
        self._is_closed = False

    def doubt(self) -> None:
        """Record that a conductor does not know this agent as registered for the host."""
        with self._condition:
            self._is_doubtful = True
            self._condition.notify_all()

    def close(self) -> None:
        """End :meth:`wait_doubtful`: the process stops."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()

    def wait_doubtful(self) -> bool:
        """Wait until this agent has to register again; False if the process stops."""
        with self._condition:
            self._condition.wait_for(lambda: self._is_closed or self._is_doubtful)
            self._is_doubtful = False
            return not self._is_closed
