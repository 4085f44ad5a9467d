# SPDX-License-Identifier: Apache-2.0
"""Blocks and literals of the documentation that are parsed: each names what exists."""

import argparse
import configparser
import functools
import importlib.metadata
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from unittest import mock

import jsonschema
import pytest
import yaml
from keystoneauth1 import loading
from oslo_config import cfg
from oslo_policy import policy

from nova_precache import conf as configuration, health, policies
from nova_precache.api import app, routes
from nova_precache.api.schemas import requests as request_schemas
from nova_precache.cmd import manage
from nova_precache_tempest_plugin import config as plugin_options
from tests.conftest import require_server
from tools import documentation
from tools.documentation import ROOT, Block
from tools.waiting import TIMEOUT_SECONDS

pytestmark = pytest.mark.filterwarnings('ignore:The osc_lib.version module is deprecated')

HEALTH = (*(each.PATH for each in (app.Healthcheck, app.ReadyCheck)), health.PATH, health.LIVE_PATH)
BLOCKS = documentation.blocks()
LITERALS = sorted({each.text for each in documentation.literals()})
# Options of Nova, Keystone and tempest.
FOREIGN_OPTIONS = {
    ('compute', 'vmdk_allowed_types'),
    ('identity', 'region'),
    ('notifications', 'default_level'),
    ('token', 'expiration'),
}
# Options on the command lines of tempest, gunicorn, uwsgi, the openstack client and the benchmarks.
FOREIGN_FLAGS = {
    *('--concurrency', '--regex', '--serial'),
    '--preload',
    '--lazy-apps',
    *('--nic', '--os-region-name'),
}
OPTION = re.compile(r'\[(\w+)\] (\w+)(?: = (\S.*))?')
CALL = re.compile(r'(GET|HEAD|POST|PUT|DELETE) (/\S*)')
NGINX = """\
pid {directory}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:1;
{text}
    }}
}}
"""


def _parsed(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.test is None]


def _place(block: Block) -> str:
    return block.place


def test_each_block_is_run_or_parsed() -> None:
    assert list(documentation.faults(BLOCKS)) == []


def test_every_block_and_mark_is_found() -> None:
    written = '\n'.join((ROOT / page).read_text() for page in documentation.pages())

    marked = [block for block in BLOCKS if block.test or block.not_run]
    assert len(BLOCKS) == len(re.findall(r'^ *\.\. code-block::', written, re.MULTILINE))
    assert len(marked) == len(re.findall(r'^ *\.\. (?:not )?run: ', written, re.MULTILINE))


@pytest.mark.parametrize(
    ('text', 'fault'),
    [
        ('.. code-block:: shell\n\n   nova-precache-manage db sync', 'no test runs it'),
        ('.. code-block:: sql\n\n   SELECT 1', 'no test runs it'),
        ('.. run: somewhere\n.. code-block:: shell\n\n   ls', "unknown test 'somewhere'"),
        ('So::\n\n   nova-precache-manage db sync', "language ''"),
        ('.. code-block:: console\n\n   $ ls', "language 'console'"),
        ('.. code-block:: text\n\n   $ openstack precache list', 'a command in a block'),
        ('.. code-block:: text\n\n   .venv/bin/tox -e docs', 'a command in a block'),
        ('1. Do:\n\n   .. code-block:: shell\n\n      ls', 'no test runs it'),
    ],
)
def test_block_without_test_is_fault(text: str, fault: str) -> None:
    (found,) = documentation.faults(documentation.parse('page.rst', text))

    assert fault in found


def test_comment_above_marks_block() -> None:
    marked = '.. run: guide compute /a\n.. code-block:: ini\n\n   [a]'
    text = f'{marked}\n\nSo\n\n.. code-block:: ini\n\n   b'

    first, second = documentation.parse('page.rst', text)

    assert (first.test, first.arguments, first.text) == ('guide', ('compute', '/a'), '[a]')
    assert second.test is None


@pytest.mark.parametrize(('count', 'faults'), [(10, 0), (11, 1)])
def test_at_most_ten_blocks_not_run(count: int, faults: int) -> None:
    text = '\n\n'.join(['.. not run: a GPU\n.. code-block:: shell\n\n   ls'] * count)

    blocks = documentation.parse('page.rst', text)

    assert [block.not_run for block in blocks] == ['a GPU'] * count
    assert len(list(documentation.faults(blocks))) == faults


# Configuration


@functools.cache
def _options() -> dict[tuple[str, str], cfg.Opt]:
    text = (ROOT / 'etc/nova-precache/nova-precache-config-generator.conf').read_text()
    names = re.findall(r'^namespace = (\S+)$', text, re.MULTILINE)
    listed = [
        group
        for entry in importlib.metadata.entry_points(group='oslo.config.opts')
        if entry.name in names
        for group in entry.load()()
    ]
    known = {(_name(group), opt.dest): opt for group, opts in listed for opt in opts}
    logins = [
        *loading.get_auth_plugin_conf_options('password'),
        *loading.get_auth_plugin_conf_options('v3applicationcredential'),
        *loading.get_session_conf_options(),
        *loading.get_auth_common_conf_options(),
        cfg.StrOpt('region_name'),
    ]
    for group in ('glance', 'keystone_authtoken'):
        known.update({(group, opt.dest): opt for opt in logins if (group, opt.dest) not in known})
    return known


def _name(group: object) -> str:
    return 'DEFAULT' if group is None else str(getattr(group, 'name', group))


def _wrong_values(text: str) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None, default_section='')
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return [
        fault
        for group in parser.sections()
        for name, value in parser[group].items()
        for fault in _wrong_value(group, name, value)
    ]


def _wrong_value(group: str, name: str, value: str | None) -> Iterator[str]:
    option = _options().get((group, name))
    if option is None:
        yield f'[{group}] {name} is no option'
    elif value is not None:
        try:
            option.type(value)
        except ValueError as exc:
            yield f'[{group}] {name}: {exc}'


def _configurations() -> list[Block]:
    return [each for each in BLOCKS if each.language == 'ini' and each.test != 'tempest']


@pytest.mark.parametrize('block', _configurations(), ids=_place)
def test_documented_options_exist_and_parse(
    block: Block,
) -> None:
    assert _wrong_values(block.text) == []


@pytest.mark.parametrize(
    ('text', 'wrong'),
    [
        (
            '[image_cache]\nprecache_concurency = 4',
            '[image_cache] precache_concurency is no option',
        ),
        ('[image_cache]\nprecache_concurrency = four', '[image_cache] precache_concurrency: '),
        ('[glance]\nuser = x', '[glance] user is no option'),
    ],
)
def test_bad_documented_option_is_found(text: str, wrong: str) -> None:
    (found,) = _wrong_values(text)
    assert found.startswith(wrong)


def _help_of_options() -> list[str]:
    return [opt.help or '' for _, opts in configuration.list_opts() for opt in opts]


def test_option_in_page_exists() -> None:
    plugins = {
        ('service_available', plugin_options.AVAILABLE.name),
        *((plugin_options.GROUP.name, opt.name) for opt in plugin_options.OPTIONS),
    }
    named = [found.groups() for found in map(OPTION.fullmatch, LITERALS) if found is not None]

    assert len(named) > 50
    assert [
        fault
        for group, name, value in named
        if (group, name) not in FOREIGN_OPTIONS | plugins
        for fault in _wrong_value(group, name, value)
    ] == []


def test_option_in_help_exists() -> None:
    named = {found for text in _help_of_options() for found in re.findall(r'\[(\w+)\] (\w+)', text)}

    assert named
    assert sorted(named - set(_options()) - FOREIGN_OPTIONS) == []


# Files of other programs


@pytest.mark.parametrize('block', [each for each in BLOCKS if each.language == 'json'], ids=_place)
def test_documented_body_matches_schema(block: Block) -> None:
    body = json.loads(block.text)
    asked = body.get('request')
    schema = request_schemas.ACTION
    if asked is not None:
        schema = request_schemas.CREATE if 'images' in asked else request_schemas.CHANGE
    jsonschema.validate(body, schema)


@pytest.mark.parametrize('block', _parsed('yaml'), ids=_place)
def test_documented_policy_rules_exist(block: Block) -> None:
    known = {rule.name for rule in policies.list_rules()}

    rules = yaml.safe_load(block.text)

    assert [name for name in rules if name not in known] == []
    parsed = policy.Rules.load(block.text)
    assert [name for name in rules if str(parsed[name]) == '!'] == []


@pytest.mark.parametrize('block', _parsed('nginx'), ids=_place)
def test_nginx_takes_its_configuration(block: Block, tmp_path: pathlib.Path) -> None:
    nginx = shutil.which('nginx') or shutil.which('nginx', path='/usr/sbin')
    require_server('nginx', nginx is not None, 'apt-get install nginx')
    path = tmp_path / 'nginx.conf'
    path.write_text(NGINX.format(directory=tmp_path, text=block.text))

    ran = _run([str(nginx), '-t', '-q', '-e', 'stderr', '-c', str(path)])

    assert (ran.returncode, ran.stderr) == (0, '')


@pytest.mark.parametrize(
    'unit', sorted((ROOT / 'etc/systemd').iterdir()), ids=lambda path: path.stem
)
def test_systemd_accepts_units_with_drop_ins(unit: pathlib.Path, tmp_path: pathlib.Path) -> None:
    verify = shutil.which('systemd-analyze')
    require_server('systemd-analyze', verify is not None, 'apt-get install systemd')
    _write_unit(tmp_path / unit.name, unit.read_text())
    drop_ins = [block for block in _parsed('systemd') if _is_for(unit.stem, block)]
    for number, block in enumerate(drop_ins):
        _write_unit(tmp_path / f'{unit.name}.d' / f'{number}.conf', block.text)

    ran = _run([str(verify), '--man=no', '--generators=no', 'verify', str(tmp_path / unit.name)])

    assert drop_ins
    assert [line for line in ran.stderr.splitlines() if str(tmp_path) in line] == []


def _is_for(unit: str, block: Block) -> bool:
    """A drop-in that starts a server is for the unit that starts such a one."""
    return 'ExecStart' not in block.text or unit in block.text or unit == _unit_of_server(block)


def _unit_of_server(block: Block) -> str | None:
    return 'nova-precache-api' if 'uwsgi' in block.text else None


def _write_unit(path: pathlib.Path, text: str) -> None:
    """Write it with programs that are there, which systemd-analyze looks for."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(re.sub(r'(?<==)/\S+/bin/\S+', '/bin/true', text))


# Commands


def _commands() -> list[str]:
    inline = [each for each in LITERALS if documentation.commands(each) and ' ' in each]
    blocks = [command for block in documentation.run_by('tools') for command in _lines(block.text)]
    return sorted({*inline, *blocks, *(each for each in LITERALS if _is_tool(each))})


def _lines(text: str) -> list[str]:
    return [line for line in text.replace('\\\n', ' ').splitlines() if line.strip()]


def _is_tool(text: str) -> bool:
    return text.startswith(('tools/', '.venv/bin/')) and ' ' in text


@pytest.mark.parametrize('command', _commands(), ids=lambda text: text[:60])
def test_inline_command_and_options_exist(command: str) -> None:
    program, *arguments = shlex.split(command)
    checks = {
        'nova-precache-manage': _check_manage,
        'openstack': _check_openstack,
        'tox': _check_tox,
        'systemctl': _check_systemctl,
        'journalctl': _check_journalctl,
        'nova-precache-status': lambda words: _check_words(words, ['upgrade', 'check']),
        'nova-manage': lambda words: _check_words(
            words, ['cell_v2', 'create_cell', 'discover_hosts']
        ),
        'rabbitmqctl': lambda words: _check_words(words, ['status']),
        'tempest': lambda words: _check_words(words[:1], ['init', 'list-plugins', 'run']),
    }
    if program.startswith('tools/'):
        _check_tool(program, arguments)
    elif program.startswith('.venv/bin/'):
        _check_installed(program.removeprefix('.venv/bin/'))
    else:
        checks[program](arguments)


def _check_words(words: list[str], known: list[str]) -> None:
    assert [word for word in words if word not in known] == []


def _check_manage(words: list[str]) -> None:
    group, *rest = words
    parsers = _manage_parsers()
    assert any(name.startswith(' '.join(words[:2])) for name in parsers), (group, rest)
    _check_options(words, parsers[' '.join(words[:2])] if len(words) > 1 else set())


@functools.cache
def _manage_parsers() -> dict[str, set[str]]:
    """Return the options of each command of nova-precache-manage."""
    return {name: set(parser._option_string_actions) for name, parser in _manage_commands()}


def _manage_commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    subparsers = argparse.ArgumentParser().add_subparsers()
    manage._add_commands(subparsers)
    for group, actions in subparsers.choices.items():
        for action, command in actions._subparsers._group_actions[0].choices.items():
            yield f'{group} {action}', command


@functools.cache
def _openstack_commands() -> dict[str, importlib.metadata.EntryPoint]:
    found = importlib.metadata.entry_points()
    return {
        entry.name.replace('_', ' '): entry
        for group in found.groups
        if group.startswith('openstack.') and group != 'openstack.cli.extension'
        for entry in found.select(group=group)
    }


def _check_openstack(words: list[str]) -> None:
    if words[0] == 'help':
        words = words[1:]
    names = [
        name
        for name in _openstack_commands()
        if f'{" ".join(words)} '.startswith(f'{name} ') or name.startswith(f'{" ".join(words)} ')
    ]
    assert names, words
    name = max(names, key=len)
    if name.startswith('precache') and any(word.startswith('--') for word in words):
        _check_options(words, _options_of(name))


def _options_of(name: str) -> set[str]:
    return set(_parser_of(name)._option_string_actions)


def _parser_of(name: str) -> argparse.ArgumentParser:
    command = _openstack_commands()[name].load()
    parser: argparse.ArgumentParser = command(mock.MagicMock(), None, cmd_name=name).get_parser(
        name
    )
    return parser


def test_help_names_existing_options() -> None:
    ours = [name for name in _openstack_commands() if name.startswith('precache')]
    helps = [_parser_of(name).format_help() for name in ours]
    helps += [parser.format_help() for _, parser in _manage_commands()]
    text = ' '.join(' '.join(helps).split())

    options = set(re.findall(r'\[(\w+)\] (\w+)', text))
    assert options
    assert sorted(options - set(_options())) == []
    for command in re.findall(r'"(openstack precache [^"]*)"', text):
        _check_openstack(shlex.split(command)[1:])


def _check_options(words: list[str], known: set[str]) -> None:
    assert [word for word in words if word.startswith('--') and word not in known] == []


def _check_tox(words: list[str]) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / 'tox.ini')
    if words != ['list']:
        assert words[0] == '-e'
        assert f'testenv:{words[1]}' in tox


def _check_tool(script: str, arguments: list[str]) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    sources = path.read_text() + ''.join(each.read_text() for each in ROOT.glob('tools/*.py'))
    assert [word for word in arguments if word.startswith('--') and word not in sources] == []


def _check_installed(program: str) -> None:
    listed = [
        re.split(r'[\[<>=~ ]', line)[0]
        for name in ('lint-requirements.txt', 'test-requirements.txt')
        for line in (ROOT / name).read_text().splitlines()
    ]
    assert program in listed
    profile = re.search(
        r'^ *test\)(.*?);;', (ROOT / 'tools/common.sh').read_text(), re.MULTILINE | re.DOTALL
    )
    assert profile is not None
    assert 'lint-requirements.txt' in profile[0]


def _check_journalctl(words: list[str]) -> None:
    names = ('--unit', '--since', '--priority', '--grep', '--output')
    _check_words([word for word in words if word.startswith('--')], list(names))


def _check_systemctl(words: list[str]) -> None:
    verb, *units = words
    assert verb in {'edit', 'reload', 'restart', 'status', 'stop'}
    assert [unit for unit in units if not (ROOT / f'etc/systemd/{unit}.service').exists()] == []


def test_release_note_command_works(tmp_path: pathlib.Path) -> None:
    (command,) = [each for each in _commands() if 'bin/reno' in each]
    reno = pathlib.Path(sys.executable).parent / 'reno'
    require_server('reno', reno.exists(), 'pip install --requirement lint-requirements.txt')

    ran = _run([str(reno), *shlex.split(command)[1:]], tmp_path)

    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / 'releasenotes' / 'notes').iterdir())) == 1


def test_an_option_of_a_command_exists() -> None:
    # An error of the client begins with the option and a colon.
    named = {text.split()[0].rstrip(':') for text in LITERALS if re.match(r'--\w', text)}
    sources = '\n'.join(
        path.read_text()
        for directory in ('benchmarks', 'nova_precache/cmd', 'tools')
        for path in (ROOT / directory).rglob('*.py')
    )
    known = {
        *(option for options in _manage_parsers().values() for option in options),
        *(
            option
            for name in _openstack_commands()
            if name.startswith('precache')
            for option in _options_of(name)
        ),
        *(f'--{opt.dest.replace("_", "-")}' for opt in _options().values()),
        *re.findall(r"'(--[\w-]+)'", sources),
        *FOREIGN_FLAGS,
        '--config-dir',
        '--config-file',
        '--help',
        '--version',
    }

    assert len(named) > 30
    assert sorted(named - known) == []


# URLs


@pytest.mark.parametrize(
    'text',
    [each for each in LITERALS if CALL.fullmatch(each) or re.match(r'/v[12](\W|$)', each)],
)
def test_documented_url_and_method_exist(text: str) -> None:
    found = CALL.fullmatch(text)
    method, url = found.groups() if found else (None, text)
    path = re.sub(r'\?.*', '', url)
    if path in {'/metrics', '/v2', *HEALTH}:  # /v2 is Glance's
        return

    matching = [
        methods
        for table in (routes.RESOURCES, routes.VERSION_DOCUMENTS)
        for template, methods in table.items()
        # A page may name the beginning of the URLs with a project.
        if _matches(template, path) or _matches(template, f'{path}/os-aggregates')
    ]

    assert matching
    assert method is None or any(method in each for each in matching)


def _matches(template: str, path: str) -> bool:
    pattern = re.sub(r'\{(\w+)(:[^}]*)?\}', lambda _: r'(\{\w+\}|[A-Z]+|[0-9a-f-]+)', template)
    return re.fullmatch(pattern, path) is not None


def _run(
    command: list[str], directory: pathlib.Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False, cwd=directory
    )
