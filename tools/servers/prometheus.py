# SPDX-License-Identifier: Apache-2.0
"""Prometheus, which scrapes given targets and evaluates the rules in etc/prometheus."""

import json
import pathlib
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from nova_precache.standalone import process
from tools.servers import own_port

RULES = pathlib.Path(__file__).resolve().parents[2] / 'etc' / 'prometheus'
SECONDS = 20


class Prometheus(own_port.OwnPort):
    """A Prometheus with the shipped rules.

    :param targets: the name of each job with its addresses, such as ``127.0.0.1:9180``
    """

    name = 'Prometheus'

    def __init__(self, directory: pathlib.Path, targets: Mapping[str, Sequence[str]]) -> None:
        super().__init__(directory)
        self._targets = targets

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now.

        :raises requests.HTTPError: it is invalid
        """
        return list(self._get('query', query=expression)['result'])

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules and their state."""
        return [rule for group in self._get('rules')['groups'] for rule in group['rules']]

    def _get(self, what: str, **parameters: str) -> Any:
        answer = requests.get(f'{self.url}/api/v1/{what}', params=parameters, timeout=SECONDS)
        answer.raise_for_status()
        return answer.json()['data']

    def _install(self) -> pathlib.Path:
        return own_port.program('prometheus', 'prometheus')

    def _prepare(self, home: pathlib.Path) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = {
            # A scrape must end within its interval, also on a busy machine.
            'global': {'scrape_interval': '5s', 'evaluation_interval': '1s'},
            'rule_files': [str(RULES / '*.rules.yaml')],
            'scrape_configs': [
                {'job_name': job, 'static_configs': [{'targets': list(addresses)}]}
                for job, addresses in self._targets.items()
            ],
        }
        # JSON is YAML, too.
        (self.directory / 'prometheus.yml').write_text(json.dumps(configuration))

    def _command(self, home: pathlib.Path, listener: socket.socket) -> list[str]:
        return [
            str(home),
            f'--config.file={self.directory}/prometheus.yml',
            f'--storage.tsdb.path={self.directory}/data',
            f'--web.listen-address={process.HOST}:{self.port}',
        ]

    def _serves(self) -> bool:
        try:
            return requests.get(f'{self.url}/-/ready', timeout=SECONDS).ok
        except requests.ConnectionError:
            return False
