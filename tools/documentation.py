# SPDX-License-Identifier: Apache-2.0
"""The commands, configuration and options in the documentation, for the tests that run them.

A comment directly above a block names the test that runs it, and what that test needs to know,
such as the host or the file::

    .. run: guide controller /etc/nova-precache/nova-precache.conf
    .. code-block:: ini

Blocks of a language in ``PARSED`` need no comment: tests/unit/test_documented_blocks.py parses
each of them. Blocks of a language in ``RUN`` need one, or ``.. not run:`` with the hardware or the
foreign service that they need. ``python -m tools.documentation`` reports those without either.
"""

import dataclasses
import functools
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from docutils import core, nodes
from docutils.parsers.rst import roles

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The files that run the blocks with a comment, by the first word of the comment.
TESTS = {
    'chapters': 'tests/slow/test_documented_chapters.py',
    'client': 'tests/slow/test_documented_client.py',
    'database': 'tests/integration/test_documented_databases.py',
    'guide': 'tests/slow/test_guide.py',
    'tempest': 'tests/integration/test_tempest.py',
    'tools': 'tests/unit/test_documented_blocks.py',
}
PARSED = {'ini', 'json', 'nginx', 'systemd', 'yaml'}
RUN = {'shell', 'sql'}
# Diagrams and lines of logs.
SHOWN = {'text'}
MAX_NOT_RUN = 10
# With these words a command begins; a block of a language that is not run has none.
PROGRAMS = {
    *('apt-get', 'cp', 'curl', 'git', 'install', 'runuser', 'sudo', 'systemctl', 'useradd'),
    *('createdb', 'createuser', 'mysql', 'psql', 'rabbitmqctl'),
    *('grep', 'journalctl', 'logrotate', 'mariadb', 'mariadb-dump', 'ps', 'sqlite3'),
    *('gunicorn', 'pip', 'python3', 'tempest', 'tox', 'uwsgi'),
    *('nova', 'nova-manage', 'openstack'),
    *('nova-precache-api', 'nova-precache-conductor', 'nova-precache-compute'),
    *('nova-precache-manage', 'nova-precache-standalone', 'nova-precache-status'),
}
_MARK = re.compile(r'(run|not run): (\S.*)', re.DOTALL)
_DIRECTIVE = re.compile(r'^ *\.\. code-block::', re.MULTILINE)
_SPHINX_ROLES = ('doc', 'ref', 'rfc', 'oslo.config:option')


@dataclasses.dataclass(frozen=True)
class Block:
    """A literal block.

    :ivar page: path below the root of the repository
    :ivar language: of its ``code-block``; empty for a block after ``::``
    :ivar section: title of the section that it is in
    :ivar test: first word after ``run:`` in the comment above it, else None
    :ivar arguments: the words after that
    :ivar not_run: the reason after ``not run:``, else None
    """

    page: str
    line: int
    language: str
    section: str
    text: str
    test: str | None = None
    arguments: tuple[str, ...] = ()
    not_run: str | None = None

    @property
    def place(self) -> str:
        return f'{self.page}:{self.line}'


@dataclasses.dataclass(frozen=True)
class Literal:
    """Text in double backquotes, with single spaces."""

    page: str
    text: str


def pages() -> list[str]:
    """Return the paths of everything that is read as documentation, in a fixed order."""
    found = [
        *ROOT.glob('*.rst'),
        *ROOT.glob('doc/source/*.rst'),
        *ROOT.glob('doc/source/*.inc'),
        *ROOT.glob('doc/api-ref/source/*.rst'),
    ]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def blocks(*names: str) -> list[Block]:
    """Return the blocks of some pages, of all if none is named, in their order."""
    return [block for page in names or pages() for block in _blocks(page)]


def run_by(test: str, *names: str) -> list[Block]:
    """Return the blocks that a test has to run."""
    return [block for block in blocks(*names) if block.test == test]


def literals() -> list[Literal]:
    return [
        Literal(page, ' '.join(node.astext().split()))
        for page in pages()
        for node in _read((ROOT / page).read_text()).findall(nodes.literal)
    ]


def parse(page: str, text: str) -> tuple[Block, ...]:
    """Return the blocks of a page with some text."""
    return tuple(_find_blocks(page, text, _read(text)))


@functools.cache
def _blocks(page: str) -> tuple[Block, ...]:
    return parse(page, (ROOT / page).read_text())


def _read(text: str) -> nodes.document:
    for role in _SPHINX_ROLES:
        roles.register_generic_role(role, nodes.inline)
    return core.publish_doctree(
        text,
        settings_overrides={
            'doctitle_xform': False,
            'file_insertion_enabled': False,
            # Directives of Sphinx are unknown here, and left out.
            'halt_level': 5,
            'report_level': 5,
            'syntax_highlight': 'none',
        },
    )


def _find_blocks(page: str, text: str, tree: nodes.document) -> Iterator[Block]:
    # docutils knows no line of a block in a list.
    directives = (text[: each.start()].count('\n') + 1 for each in _DIRECTIVE.finditer(text))
    for node in tree.findall(nodes.literal_block):
        if isinstance(node.parent, nodes.system_message):
            continue  # the source of a directive of Sphinx
        languages = [name for name in node['classes'] if name != 'code']
        language = languages[0] if languages else ''
        line = next(directives) if language else (node.line or 0)
        block = Block(page, line, language, _section(node), node.astext())
        yield _marked(block, node.previous_sibling())


def _section(node: nodes.Element) -> str:
    while node.parent is not None:
        node = node.parent
        if isinstance(node, nodes.section):
            return str(node.children[0].astext())  # its title
    return ''


def _marked(block: Block, above: nodes.Node | None) -> Block:
    found = _MARK.fullmatch(above.astext()) if isinstance(above, nodes.comment) else None
    if found is None:
        return block
    words = found[2].split()
    if found[1] == 'not run':
        return dataclasses.replace(block, not_run=' '.join(words))
    return dataclasses.replace(block, test=words[0], arguments=tuple(words[1:]))


def faults(found: Sequence[Block]) -> Iterator[str]:
    """Report the blocks that no test runs or parses, and those that hide a command."""
    not_run = [block for block in found if block.not_run is not None]
    for block in found:
        yield from _faults_of(block)
    if len(not_run) > MAX_NOT_RUN:
        yield f'{len(not_run)} blocks are marked as not run; at most {MAX_NOT_RUN} may be'


def _faults_of(block: Block) -> Iterator[str]:
    if block.language not in PARSED | RUN | SHOWN:
        known = ', '.join(sorted(PARSED | RUN | SHOWN))
        yield f'{block.place}: language {block.language!r}: use ".. code-block::" with {known}'
    elif block.test is not None and block.test not in TESTS:
        yield f'{block.place}: unknown test {block.test!r}: one of {", ".join(sorted(TESTS))}'
    elif block.language in RUN and block.test is None and block.not_run is None:
        yield f'{block.place}: no test runs it: put ".. run: TEST" above it'
    elif block.language in SHOWN and (hidden := commands(block.text)):
        yield f'{block.place}: a command in a block that is not run: {hidden[0]}'


def commands(text: str) -> list[str]:
    """Return the lines that begin with a program."""
    lines = (line.strip().removeprefix('$ ').removeprefix('# ') for line in text.splitlines())
    return [line for line in lines if line.partition(' ')[0].rpartition('/')[2] in PROGRAMS]


def main() -> int:
    found = blocks()
    wrong = [*faults(found), *(f'{path} is missing' for path in _missing_tests())]
    for block in found:
        if block.not_run is not None:
            print(f'{block.place} is not run: needs {block.not_run}')
    print('\n'.join(wrong) or f'{len(found)} blocks, each run or parsed by a test, or listed')
    return 1 if wrong else 0


def _missing_tests() -> list[str]:
    return [path for path in TESTS.values() if not (ROOT / path).is_file()]


if __name__ == '__main__':
    sys.exit(main())
