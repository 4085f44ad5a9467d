# SPDX-License-Identifier: Apache-2.0
"""The chapters for operators quote reasons, log lines and defaults as the code has them."""

import ast
import functools
import importlib
import itertools
import pathlib
import re
from collections.abc import Iterator, Sequence

import pytest

from nova_precache import conf as configuration, model
from tools import documentation

SOURCE = documentation.ROOT / 'doc' / 'source'
PACKAGE = documentation.ROOT / 'nova_precache'
# Stands for a name, a number or another error.
ANY = '…'
SHORTEST = 8
STATUSES = {
    *map(str, itertools.chain(model.RequestStatus, model.TaskStatus, model.HostStatus)),
}
_FORMAT = re.compile(r'%(?:\.?\d+)?[sdgrf]')
# The message is on one or more lines of its own.
_LOG_LINE = re.compile(
    r'^\S+ (?:api|conductor|compute) +(?P<level>[A-Z]+) (?P<logger>[\w.]+) \[[^]]*\]\n'
    r'(?P<message>(?:^ +.*$\n?)+)',
    re.MULTILINE,
)


def _rows(head: str = 'Status') -> list[list[str]]:
    """Return the cells of the tables whose heads begin with a word, without their heads.

    :param head: of the tables of symptoms; that of the cases, whose texts a test with real
        processes waits for, begins with ``Case``
    """
    text = (SOURCE / 'troubleshooting.rst').read_text()
    tables = text.split(f'   * - {head}\n')[1:]
    rows = itertools.chain.from_iterable(
        re.split(r'^   \* - ', re.split(r'\n\n', table)[0], flags=re.MULTILINE)[1:]
        for table in tables
    )
    return [re.split(r'^     - ', row, flags=re.MULTILINE) for row in rows]


def _column(number: int, *heads: str) -> list[str]:
    """Return what is in double backquotes in a column."""
    rows = itertools.chain.from_iterable(map(_rows, heads or ('Status',)))
    found = (re.findall(r'``(.+?)``', ' '.join(row[number].split())) for row in rows)
    return sorted(set(itertools.chain.from_iterable(found)))


@functools.cache
def _texts() -> frozenset[str]:
    """Return the texts in the code, with ``ANY`` for what is filled in; no docstrings."""
    return frozenset(
        text for path in PACKAGE.rglob('*.py') for text in _texts_of(ast.parse(path.read_text()))
    )


def _texts_of(tree: ast.AST) -> Iterator[str]:
    documented = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and id(node) not in documented
        ):
            yield _text(node)


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return ''.join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else ANY


def _is_in_the_code(reason: str) -> bool:
    parts = [part for part in reason.split(ANY) if part.strip()]
    pattern = re.compile('.*'.join(re.escape(part.strip(' ')) for part in parts), re.DOTALL)
    return any(pattern.search(text) for text in _texts())


def test_there_are_symptoms() -> None:
    assert len(_rows()) > 30
    assert len(_rows('Case')) > 20


@pytest.mark.parametrize('status', _column(0))
def test_symptom_status_exists(status: str) -> None:
    assert status in STATUSES


@pytest.mark.parametrize('reason', _column(1))
def test_symptom_reason_is_in_code(reason: str) -> None:
    assert len(reason.replace(ANY, '')) >= SHORTEST
    assert _is_in_the_code(reason)


@pytest.mark.parametrize(
    'reason',
    ['host down: last seen at …', 'needs … gigabytes', 'unsafe picture: …', 'canary host failed'],
)
def test_unknown_reason_is_found(reason: str) -> None:
    assert not _is_in_the_code(reason)


@pytest.mark.parametrize('command', _column(2, 'Status', 'Case'))
def test_symptom_command_is_in_block(command: str) -> None:
    blocks = documentation.blocks('doc/source/troubleshooting.rst')
    assert command in [line for block in blocks for line in block.text.splitlines()]


def _log_lines() -> list[re.Match[str]]:
    blocks = documentation.blocks('doc/source/logs.rst')
    shown = [block for block in blocks if block.language == 'text']
    return [found for block in shown for found in _LOG_LINE.finditer(block.text)]


def _formats(logger: str, level: str) -> Sequence[str]:
    """Return the messages that a module logs at a level."""
    path = importlib.import_module(logger).__file__
    assert path is not None
    calls = [
        node
        for node in ast.walk(ast.parse(pathlib.Path(path).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    return [
        _text(call.args[position])
        for call in calls
        for name, position in ((level.lower(), 0), ('log', 1))
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == name
        and len(call.args) > position
    ]


def _is_logged(message: str, formats: Sequence[str]) -> bool:
    patterns = ('.*'.join(map(re.escape, _FORMAT.split(each))) for each in formats)
    return any(re.fullmatch(pattern, message) for pattern in patterns)


@pytest.mark.parametrize('line', _log_lines(), ids=lambda line: str(line['message']).strip()[:40])
def test_quoted_log_line_is_logged(line: re.Match[str]) -> None:
    message = ' '.join(line['message'].split())
    assert _is_logged(message, _formats(line['logger'], line['level']))


def test_the_log_lines_are_found() -> None:
    assert len(_log_lines()) > 8
    assert not _is_logged('Request 1 is done', _formats('nova_precache.conductor.tracker', 'INFO'))


def _sizes() -> list[tuple[str, str, str]]:
    text = (SOURCE / 'sizing.rst').read_text()
    return re.findall(r'\* - ``\[(\w+)\] (\w+)``\n +- (\S+)\n', text)


@pytest.mark.parametrize(('group', 'name', 'default'), _sizes())
def test_sizing_quotes_option_defaults(group: str, name: str, default: str) -> None:
    conf = configuration.new(config_files=[])
    value = conf[name] if group == 'DEFAULT' else conf[group][name]
    assert float(value) == float(default)


def test_defaults_are_found() -> None:
    assert len(_sizes()) > 10
