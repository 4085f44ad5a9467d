# SPDX-License-Identifier: Apache-2.0
"""The real servers that fleets are measured on, each of its own, on private ports and disks."""

import contextlib
import os
import pathlib
import socket
import subprocess
import uuid
from collections.abc import Iterator
from unittest import mock

import sqlalchemy as sa
from pifpaf.drivers import mysql, rabbitmq

from benchmarks.fleet.cases import MARIADB, SQLITE


class Databases:
    """Gives an empty database for each case, of the kind that it names."""

    def __init__(self, directory: pathlib.Path, mariadb_socket: str | None) -> None:
        self._directory = directory
        self._socket = mariadb_socket

    @contextlib.contextmanager
    def empty(self, kind: str) -> Iterator[str]:
        """Make one and give its URL; afterwards it is gone."""
        name = f'fleet_{uuid.uuid4().hex}'
        if kind == SQLITE:
            yield f'sqlite:///{self._directory / name}.sqlite'
            for file in self._directory.glob(f'{name}*'):
                file.unlink()
            return
        self._execute(f'CREATE DATABASE {name}')
        yield self._url(name)
        self._execute(f'DROP DATABASE {name}')

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._url(''))
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def _url(self, name: str) -> str:
        # PyMySQL gets TLS ready for each connection, which takes longer than to connect.
        options = f'unix_socket={self._socket}&charset=utf8mb4&ssl_disabled=true'
        return f'mysql+pymysql://root@localhost/{name}?{options}'


@contextlib.contextmanager
def databases(directory: pathlib.Path, kinds: list[str]) -> Iterator[Databases]:
    """Start what these kinds of database need; MariaDB as its packages set it up."""
    if MARIADB not in kinds:
        yield Databases(directory, None)
        return
    with mysql.MySQLDriver() as server:
        yield Databases(directory, server.socket)


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Start a RabbitMQ, with an Erlang name server too, and give its transport URL."""
    port = _free_port()
    name = f'fleet-{port}'
    own = {
        'ERL_EPMD_PORT': str(_free_port()),
        'ERL_EPMD_ADDRESS': '127.0.0.1',
        'RABBITMQ_DIST_PORT': str(_free_port()),
    }
    with mock.patch.dict(os.environ, own):
        try:
            with rabbitmq.RabbitMQDriver(port=port, nodename=name) as server:
                yield f'rabbit://{server.username}:{server.password}@127.0.0.1:{port}/'
        finally:
            # The name server was started as a daemon by the node, and outlives it.
            subprocess.run(['epmd', '-kill'], stdout=subprocess.DEVNULL, check=False)


def _free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as listener:
        return int(listener.getsockname()[1])
