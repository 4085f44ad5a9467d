# SPDX-License-Identifier: Apache-2.0
"""The client of ``worker``: starts, calls and kills the process of our driver."""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import threading
from concurrent import futures
from typing import Any, Self

from nova_precache.standalone import process

ROOT = pathlib.Path(__file__).resolve().parents[1]

Options = dict[str, dict[str, Any]]


class WorkerGone(Exception):
    """The worker ended before it answered."""


class CommandFailed(Exception):
    """A command raised an exception; ``error`` is its name.

    :ivar is_known: it is a domain error with a reason; any other is a bug
    :ivar can_pass: another attempt may succeed
    """

    def __init__(self, error: str, message: str, *, is_known: bool, can_pass: bool) -> None:
        super().__init__(f'{error}: {message}')
        self.error = error
        self.is_known = is_known
        self.can_pass = can_pass


@dataclasses.dataclass(eq=False)
class Compute:
    """Our driver on a directory of instances, in a process of its own.

    Start it from the main thread: it dies with the thread that started it.

    :param log: a file to append its log to
    :param options: those that differ from their defaults
    """

    instances_path: pathlib.Path
    glance_url: str
    log: pathlib.Path
    options: Options = dataclasses.field(default_factory=dict)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Start the process and return when the driver is ready."""
        self.instances_path.mkdir(parents=True, exist_ok=True)
        defaults = self.options.get('DEFAULT', {})
        options = {
            **self.options,
            'DEFAULT': {'instances_path': str(self.instances_path), **defaults},
        }
        given = json.dumps({'glance_url': self.glance_url, 'options': options})
        command = [sys.executable, '-m', 'benchmarks.worker', given]
        with self.log.open('ab') as log:
            self._process = subprocess.Popen(
                process.dies_with_parent(command, 'KILL'),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._ids = itertools.count(1)
        ready: futures.Future[Any] = futures.Future()
        self._pending: dict[int, futures.Future[Any]] = {0: ready}
        self._pending_lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        ready.result()

    def kill(self) -> None:
        """Kill it, as on a lost machine; pending calls raise WorkerGone."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def ask(self, what: str, **arguments: Any) -> 'futures.Future[Any]':
        """Start a command and return the future of its result.

        The future raises CommandFailed or WorkerGone.
        """
        answer: futures.Future[Any] = futures.Future()
        with self._pending_lock:
            number = next(self._ids)
            self._pending[number] = answer
            line = json.dumps({'id': number, 'do': what, **arguments})
            assert self._process.stdin
            try:
                self._process.stdin.write(line + '\n')
                self._process.stdin.flush()
            except BrokenPipeError:
                del self._pending[number]
                answer.set_exception(WorkerGone(process.tail(self.log)))
        return answer

    def call(self, what: str, **arguments: Any) -> Any:
        """Run a command and return its result.

        :raises CommandFailed: the driver raised an exception
        :raises WorkerGone: the worker ended
        """
        return self.ask(what, **arguments).result()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._pending_lock:
                waiting = self._pending.pop(answer.pop('id'))
            if 'error' in answer:
                waiting.set_exception(CommandFailed(**answer))
            else:
                waiting.set_result(answer['result'])
        with self._pending_lock:
            left, self._pending = list(self._pending.values()), {}
        for waiting in left:
            waiting.set_exception(WorkerGone(process.tail(self.log)))
