# SPDX-License-Identifier: Apache-2.0
"""Computes behind a real broker: an RPC server of the service for each, in one more process.

Their driver is simulated. Empty calls measure what a call itself costs the conductor's process.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent import futures
from typing import Any, Self

from benchmarks.fleet.cases import Rpc
from benchmarks.fleet.computes import IMAGE_BYTES
from nova_precache import conf as precache_conf, context, model, rpc
from nova_precache.compute import manager, name, rpcapi as compute_rpcapi, transfers
from nova_precache.conductor import rpcapi as conductor_rpcapi
from nova_precache.image import fake, service
from nova_precache.standalone import process
from nova_precache.transfer_control import Control
from nova_precache.virt import driver

FIRST_CALLS = 50
EMPTY_CALLS = 1000
CALL_SECONDS = 60.0
STOP_SECONDS = 30.0


class Computes:
    """The running process of the computes."""

    def __init__(self, transport_url: str, hosts: Sequence[str], delay_seconds: float) -> None:
        self._hosts = hosts
        self._transport = _connect(transport_url)
        arguments = [transport_url, json.dumps(list(hosts)), str(delay_seconds)]
        self._process = subprocess.Popen(
            process.dies_with_parent([sys.executable, '-m', __name__, *arguments], 'KILL'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        self._heard('ready')
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # ends the process
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def measure(self, parallel: int) -> Rpc:
        """Make empty calls of the computes, then of the conductor, some in parallel."""
        client = rpc.Client(self._transport, compute_rpcapi.TOPIC)
        _make_empty_calls(client, FIRST_CALLS, parallel, self._hosts)
        began, began_cpu = time.monotonic(), time.process_time()
        _make_empty_calls(client, EMPTY_CALLS, parallel, self._hosts)
        made_wall, made = time.monotonic() - began, time.process_time() - began_cpu
        self._say(f'{FIRST_CALLS} {parallel}')
        began_cpu = time.process_time()
        self._say(f'{EMPTY_CALLS} {parallel}')
        served = time.process_time() - began_cpu
        return Rpc(made / EMPTY_CALLS, served / EMPTY_CALLS, made_wall / EMPTY_CALLS)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f'{line}\n')
        self._process.stdin.flush()
        self._heard('done')

    def _heard(self, word: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line.strip() != word:
            raise RuntimeError(f'The compute process printed {line!r} instead of {word!r}')


class SimulatedDriver(driver.ComputeDriver):
    """Caches any image, after a delay."""

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds

    def cache_image(
        self,
        images: service.ImageService,
        image_id: str,
        progress: model.ProgressCallback,
        control: Control | None = None,
        needed: Sequence[model.Companion] | None = None,
    ) -> model.CacheResult:
        time.sleep(self._delay_seconds)
        return model.CacheResult(existing=False, bytes_done=IMAGE_BYTES, bytes_total=IMAGE_BYTES)


def serve(transport_url: str, hosts: Sequence[str], delay_seconds: float) -> None:
    """Serve the hosts until the input ends; each line there orders calls of the conductor."""
    transport = _connect(transport_url)
    for host in hosts:
        endpoint = _endpoint(transport, host, delay_seconds)
        rpc.Server(transport, compute_rpcapi.TOPIC, host, [endpoint]).start()
    conductor = rpc.Client(transport, conductor_rpcapi.TOPIC)
    print('ready', flush=True)
    for line in sys.stdin:
        times, parallel = map(int, line.split())
        _make_empty_calls(conductor, times, parallel)
        print('done', flush=True)


def _endpoint(transport: rpc.Transport, host: str, delay_seconds: float) -> manager.ComputeManager:
    def images_for(*given: Any) -> service.ImageService:
        return fake.FakeImageService()

    reporter = conductor_rpcapi.ConductorReporter(transport, None, CALL_SECONDS)
    return manager.ComputeManager(
        name.Name(host, agent_id=host),
        SimulatedDriver(delay_seconds),
        reporter,
        images_for,
        transfers.Transfers(),
    )


def _connect(transport_url: str) -> rpc.Transport:
    conf = precache_conf.new([], [])
    conf.set_override('transport_url', transport_url)
    return rpc.connect(conf)


def _make_empty_calls(
    client: rpc.Client, times: int, parallel: int, servers: Sequence[str | None] = (None,)
) -> None:
    def call(number: int) -> None:
        server = servers[number % len(servers)]
        client.call(
            context.admin_context(), 'ping', '1.0', server=server, timeout_seconds=CALL_SECONDS
        )

    with futures.ThreadPoolExecutor(parallel) as pool:
        list(pool.map(call, range(times)))  # raises the error of a call


if __name__ == '__main__':
    serve(sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]))
    os._exit(0)  # a hundred servers are not waited for
