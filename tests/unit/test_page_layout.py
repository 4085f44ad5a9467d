# SPDX-License-Identifier: Apache-2.0
"""Each block of the documentation is coloured as what it is and fits into a narrow window."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterator

import pygments.lexers
import pytest
from pygments import token

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOC = ROOT / 'doc'
PAGES = sorted(
    path
    for folder, pattern in [
        (ROOT, '*.rst'),
        (DOC, 'source/*.rst'),
        (DOC, 'source/*.inc'),
        (DOC, 'api-ref/source/*.rst'),
    ]
    for path in folder.glob(pattern)
)
# In a window of 800 pixels a block has 97 columns, and each list around it takes 4.4 of them.
# doc/_static/site.css has a part in that.
COLUMNS = 96
# Strings of JSON cannot be broken: doc/_static/site.css wraps those lines.
WRAPPED = {'json'}
DIRECTIVE = re.compile(r'( *)\.\. (code-block|literalinclude)::(?: +(\S+))?')
INTRODUCTION = re.compile(r'( *(?:(?:[-*]|\d+\.) +)?)(?!\.\. ).*::')


@dataclasses.dataclass(frozen=True)
class Block:
    """A literal block.

    :ivar column: where the directive, or the paragraph before the block, begins
    :ivar language: empty if the block names none
    """

    place: str
    column: int
    language: str
    text: str

    def __str__(self) -> str:
        return self.place


def _blocks(page: pathlib.Path, text: str) -> Iterator[Block]:
    """Find the blocks of a page; those within another block are its text."""
    lines = iter(enumerate(text.splitlines(), 1))
    ahead: list[tuple[int, str]] = []
    while (current := ahead.pop() if ahead else next(lines, None)) is not None:
        number, line = current
        directive = DIRECTIVE.fullmatch(line)
        introduction = directive or INTRODUCTION.fullmatch(line)
        if introduction is None:
            continue
        column = len(introduction[1])
        content = []
        for after in lines:
            if after[1].strip() and len(after[1]) - len(after[1].lstrip()) <= column:
                ahead.append(after)
                break
            content.append(after[1])
        place = f'{page.relative_to(ROOT)}:{number}'
        yield _block(page, place, column, directive, content)


def _block(
    page: pathlib.Path,
    place: str,
    column: int,
    directive: re.Match[str] | None,
    content: list[str],
) -> Block:
    options, body = '', content
    if directive is not None:
        taken = [*itertools.takewhile(str.strip, content)]
        options, body = '\n'.join(taken), content[len(taken) :]
    indents = [len(line) - len(line.lstrip()) for line in body if line.strip()]
    text = '\n'.join(line[min(indents, default=0) :] for line in body)
    language = ''
    if directive is not None and directive[2] == 'code-block':
        language = directive[3] or ''
    elif directive is not None:
        found = re.search(r':language: (\S+)', options)
        language = found[1] if found else ''
        text = _included(page, directive[3]).read_text()
    return Block(place, column, language, text.strip('\n'))


def _included(page: pathlib.Path, name: str) -> pathlib.Path:
    """Find a file as Sphinx does: a path from the root begins at the folder of its pages."""
    return page.parent / name.lstrip('/')


BLOCKS = [block for page in PAGES for block in _blocks(page, page.read_text())]


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_block_names_its_language(block: Block) -> None:
    lexer = pygments.lexers.get_lexer_by_name(block.language)

    wrong = [text for kind, text in lexer.get_tokens(block.text) if kind is token.Error]

    assert wrong == []


@pytest.mark.parametrize('block', BLOCKS, ids=str)
def test_block_lines_fit_800_pixels(block: Block) -> None:
    if block.language in WRAPPED:
        return

    assert [line for line in block.text.splitlines() if len(line) > COLUMNS - block.column] == []
