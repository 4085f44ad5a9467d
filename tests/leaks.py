# SPDX-License-Identifier: Apache-2.0
"""The secrets that tests make, and the search for leaks of them.

Each part that makes a password or gets a token notes it here. Output of commands, answers of
the API and notifications are searched as they arrive, for all secrets known by then; logs and
databases that the processes leave, and the output that tests capture, at the end of a session.
An expected log that is missing or empty by then is reported. Configuration files and cell
mappings may hold secrets.
"""

import dataclasses
import pathlib
import subprocess
import uuid
from collections.abc import Collection, Iterable, Iterator

import sqlalchemy as sa

_CHUNK = 16 * 1024**2
_SQLITE = b'SQLite format 3\0'
_MAPPINGS = 'cell_mappings'


@dataclasses.dataclass(frozen=True, order=True)
class Leak:
    """A secret that is where it must not be; it is told by its name, to leak no further."""

    where: str
    what: str


class Secrets:
    """The secrets of one session, and where they were seen."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._seen: set[Leak] = set()
        self._expected: set[pathlib.Path] = set()
        self._searched: set[pathlib.Path] = set()

    def make(self, what: str) -> str:
        """Make a secret that cannot occur by accident."""
        return self.note(uuid.uuid4().hex, what)

    def note(self, secret: str, what: str) -> str:
        """Search for a secret, too; return it."""
        assert len(secret) >= 16, f'{what} may be anywhere by accident'
        self._names.setdefault(secret, what)
        return secret

    def look_into(self, text: str, where: str) -> None:
        """Search text that is not in a file."""
        self._seen |= {Leak(where, name) for key, name in self._names.items() if key in text}

    def look_at(self, ended: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        """Search the output of a command, and return the command."""
        program = pathlib.Path(str(ended.args[0])).name
        self.look_into(f'{ended.stdout}{ended.stderr}', f'the output of {program}')
        return ended

    def look_into_database(self, url: str, where: str) -> None:
        """Search the rows of a database of this service, except those that must hold secrets."""
        engine = sa.create_engine(url)
        try:
            with engine.connect() as connection:
                self.look_into('\n'.join(_dump(connection)), where)
        finally:
            engine.dispose()

    def expect(self, log: pathlib.Path) -> pathlib.Path:
        """Require that a log is searched; return its path."""
        self._expected.add(log.resolve())
        return log

    def missed(self) -> list[pathlib.Path]:
        """List the expected logs that were not searched, if there were secrets."""
        return sorted(self._expected - self._searched) if self._names else []

    def leaks(self, directory: pathlib.Path) -> list[Leak]:
        """Search the logs and databases in a directory; return every leak found so far."""
        if not self._names:
            return []
        for path in directory.rglob('*'):
            if path.is_file() and not path.is_symlink():
                self._look_into_file(path, str(path.relative_to(directory)))
        return sorted(self._seen)

    def _look_into_file(self, path: pathlib.Path, where: str) -> None:
        if path.suffix == '.log':
            self._look_into_bytes(_overlapping(path, max(map(len, self._names))), where)
            if path.stat().st_size:
                self._searched.add(path.resolve())
        elif path.suffix in {'.sqlite', '.db'} and _is_database(path):
            self.look_into_database(f'sqlite:///{path}', where)

    def _look_into_bytes(self, chunks: Iterable[bytes], where: str) -> None:
        for chunk in chunks:
            self.look_into(chunk.decode(errors='replace'), where)


SECRETS = Secrets()


def _overlapping(path: pathlib.Path, overlap: int) -> Iterator[bytes]:
    """Yield a file in chunks, each of which begins with the end of the one before."""
    before = b''
    with path.open('rb') as file:
        while chunk := file.read(_CHUNK):
            yield before + chunk
            before = chunk[-overlap:]


def _is_database(path: pathlib.Path) -> bool:
    with path.open('rb') as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _dump(connection: sa.Connection) -> Iterator[str]:
    for name in _tables(connection):
        table = sa.select(sa.text('*')).select_from(sa.table(name))
        for row in connection.execute(table):
            yield repr(row)


def _tables(connection: sa.Connection) -> Collection[str]:
    """Name the tables to search; there are some only in a database of ours."""
    found = set(sa.inspect(connection).get_table_names())
    return found - {_MAPPINGS} if 'cache_requests' in found else set()
