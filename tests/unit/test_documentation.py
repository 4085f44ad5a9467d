# SPDX-License-Identifier: Apache-2.0
"""Whatever a user can meet is documented, and whatever the documents name exists."""

import configparser
import pathlib
import re

import pytest
from oslo_policy import policy

from nova_precache import model, policies
from tools import state_diagrams

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = (ROOT / 'README.rst').read_text()
ADMIN_GUIDE = (ROOT / 'doc' / 'source' / 'admin.rst').read_text()
CONTRIBUTING = (ROOT / 'CONTRIBUTING.rst').read_text()


def _commands() -> list[str]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    lines = setup['entry_points']['console_scripts'].strip().splitlines()
    return [line.partition('=')[0].strip() for line in lines]


@pytest.mark.parametrize('command', _commands())
def test_readme_and_guide_name_every_command(command: str) -> None:
    assert f'``{command}``' in README
    assert f'``{command}``' in ADMIN_GUIDE


@pytest.mark.parametrize('status', [*model.RequestStatus, *model.TaskStatus])
def test_guide_explains_every_state(
    status: model.RequestStatus | model.TaskStatus,
) -> None:
    assert re.search(rf'^``{status}``  +\S', ADMIN_GUIDE, re.MULTILINE)


def test_the_diagrams_show_every_arrow() -> None:
    assert state_diagrams.PAGE.read_text() == state_diagrams.draw(), 'run "tox -e genstates"'


@pytest.mark.parametrize('rule', policies.list_rules(), ids=lambda rule: str(rule.name))
def test_every_policy_rule_described(rule: policy.RuleDefault) -> None:
    assert rule.description


@pytest.mark.parametrize('document', [README, CONTRIBUTING, ADMIN_GUIDE])
def test_documented_paths_exist(document: str) -> None:
    named = re.findall(r'(?:nova_precache|tests|tools|doc)/[\w/.-]*\w', document)

    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    'option', sorted(set(re.findall(r'``\[(\w+)\] (\w+)``', README + ADMIN_GUIDE)))
)
def test_documented_options_exist(option: tuple[str, str]) -> None:
    group, name = option
    sample = (ROOT / 'etc' / 'nova-precache' / 'nova-precache.conf.sample').read_text()

    section = sample.partition(f'\n[{group}]\n')[2].partition('\n\n[')[0]

    assert f'\n#{name} = ' in section
