# SPDX-License-Identifier: Apache-2.0
"""Gathers what computes report, so that it is written in bulk and not one by one."""

import threading

from nova_precache import model
from nova_precache.db import agents, jobs


class Intake:
    """The newest report of each agent and each job since the last write."""

    def __init__(self, agent_store: agents.Agents, job_store: jobs.Jobs) -> None:
        self._agents = agent_store
        self._jobs = job_store
        self._lock = threading.Lock()
        self._states: dict[tuple[str, str], model.Agent] = {}
        self._progress: dict[str, jobs.ProgressReport] = {}

    def add_state(self, agent: model.Agent) -> None:
        """Note a heartbeat."""
        with self._lock:
            self._states[agent.host, agent.agent_id] = agent

    def add_progress(self, report: jobs.ProgressReport) -> None:
        """Note a progress; an older one than was seen is forgotten."""
        with self._lock:
            known = self._progress.get(report.job_id)
            if known is None or _order(report) > _order(known):
                self._progress[report.job_id] = report

    def write_states(self) -> None:
        """Write the heartbeats gathered so far."""
        with self._lock:
            states, self._states = self._states, {}
        if states:
            self._agents.report(states.values())

    def write_progress(self) -> None:
        """Write the progress gathered so far."""
        with self._lock:
            progress, self._progress = self._progress, {}
        if progress:
            self._jobs.record_progress(progress.values())


def _order(report: jobs.ProgressReport) -> tuple[int, int]:
    return report.epoch, report.sequence
