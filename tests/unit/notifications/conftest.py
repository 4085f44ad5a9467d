# SPDX-License-Identifier: Apache-2.0
"""A bus in memory, and its consumers."""

import dataclasses
import pathlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import oslo_messaging as messaging
import pytest
from oslo_config import cfg

from nova_precache import conf as options
from tools.waiting import TIMEOUT_SECONDS

HOST = 'controller-1'

Configure = Callable[..., cfg.ConfigOpts]


@dataclasses.dataclass(frozen=True)
class Heard:
    """A notification as a consumer gets it."""

    publisher_id: str
    event_type: str
    payload: Any
    context: dict[str, Any]
    priority: str


class Listener:
    """A consumer of one topic; it also receives what was sent before it was made."""

    def __init__(self, conf: cfg.ConfigOpts, topic: str) -> None:
        self._heard: queue.Queue[Heard] = queue.Queue()
        self._server = messaging.get_notification_listener(
            messaging.get_notification_transport(conf),
            [messaging.Target(topic=topic)],
            [self],
            executor='threading',
        )

    def __enter__(self) -> 'Listener':
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop()
        self._server.wait()

    def next(self) -> Heard:
        return self._heard.get(timeout=TIMEOUT_SECONDS)

    def info(
        self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        self._heard.put(Heard(publisher_id, event_type, payload, ctxt, 'INFO'))

    def error(
        self, ctxt: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any
    ) -> None:
        self._heard.put(Heard(publisher_id, event_type, payload, ctxt, 'ERROR'))


@pytest.fixture
def configure(tmp_path: pathlib.Path) -> Iterator[Configure]:
    """Return a function that reads a file with additional sections, with the bus in memory."""

    def read(sections: str = '', driver: str = 'driver = messagingv2') -> cfg.ConfigOpts:
        file = tmp_path / 'nova-precache.conf'
        file.write_text(
            f'[DEFAULT]\nhost = {HOST}\n'
            f'[oslo_messaging_notifications]\ntransport_url = fake:///\n{driver}\n{sections}'
        )
        return options.new(config_files=[str(file)])

    yield read
    messaging.get_notification_transport(read()).cleanup()
