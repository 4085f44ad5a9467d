# SPDX-License-Identifier: Apache-2.0
"""What nobody may be told: the secrets that tests make, and where they are searched for.

Whatever makes a password or gets a token notes it here. What commands print, what the API
answers and what is notified is searched as it comes, for all that is known by then; at the
end of a session every log and every database that the processes left, and what the tests
captured. A log that whoever writes it has named, and that is not there or empty by then, is
told. Configuration is where secrets belong, and so are the cell mappings.
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
        """Make a secret such as is nowhere by accident."""
        return self.note(uuid.uuid4().hex, what)

    def note(self, secret: str, what: str) -> str:
        """Have a secret searched for; it is given back."""
        assert len(secret) >= 16, f'{what} may be anywhere by accident'
        self._names.setdefault(secret, what)
        return secret

    def look_into(self, text: str, where: str) -> None:
        """Search what is not in a file."""
        self._seen |= {Leak(where, name) for key, name in self._names.items() if key in text}

    def look_at(self, ended: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        """Search what a command has printed, and give it back."""
        program = pathlib.Path(str(ended.args[0])).name
        self.look_into(f'{ended.stdout}{ended.stderr}', f'the output of {program}')
        return ended

    def look_into_database(self, url: str, where: str) -> None:
        """Search the rows of a database of ours, but for those that have to have secrets."""
        engine = sa.create_engine(url)
        try:
            with engine.connect() as connection:
                self.look_into('\n'.join(_dump(connection)), where)
        finally:
            engine.dispose()

    def expect(self, log: pathlib.Path) -> pathlib.Path:
        """Have a log missed if it is not searched; its path is given back."""
        self._expected.add(log.resolve())
        return log

    def missed(self) -> list[pathlib.Path]:
        """Tell which expected logs were not searched, where there were secrets at all."""
        return sorted(self._expected - self._searched) if self._names else []

    def leaks(self, directory: pathlib.Path) -> list[Leak]:
        """Search the logs and databases in a directory, and tell what was seen at all."""
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
    """Give a file in chunks, each of which begins with the end of the one before."""
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
