# SPDX-License-Identifier: Apache-2.0
"""All that exists is installed, and no more than its users need."""

import configparser
import pathlib
import re
import subprocess
import sys

import pytest
from packaging import requirements, utils

from tools.waiting import TIMEOUT_SECONDS

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAYS_HERE = {'benchmarks', 'tests', 'tools'}
CONSTRAINTS = ROOT / 'etc' / 'nova-precache' / 'constraints.txt'
# What only services use. An openstack command has none of it.
OF_SERVICES = {'alembic', 'keystonemiddleware', 'oslo_messaging', 'oslo_service', 'sqlalchemy'}
# Runs a command as it is installed where the extra "server" is not.
WITHOUT_SERVER = f"""\
import sys

sys.modules.update(dict.fromkeys({sorted(OF_SERVICES)!r}))
sys.argv[0] = '/opt/bin/nova-precache-api'
from nova_precache.cmd.api import main
main()
"""


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    return setup


def _required(text: str) -> dict[str, requirements.Requirement]:
    lines = [line.partition('#')[0].strip() for line in text.splitlines()]
    found = [requirements.Requirement(line) for line in lines if line]
    return {utils.canonicalize_name(each.name): each for each in found}


def _base() -> dict[str, requirements.Requirement]:
    return _required((ROOT / 'requirements.txt').read_text())


def _extra(name: str) -> dict[str, requirements.Requirement]:
    return _required(_setup()['extras'][name])


def test_packages_installed_except_developer_ones() -> None:
    there = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert set(_setup()['files']['packages'].split()) == there - STAYS_HERE


def test_service_requirements_are_in_extra() -> None:
    assert {utils.canonicalize_name(each) for each in OF_SERVICES} <= set(_extra('server'))
    assert not set(_extra('server')) & set(_base())
    for extra in ('osc', 'tempest'):
        assert not set(_extra(extra)) & set(_extra('server'))


def test_plugin_imports_only_base() -> None:
    script = (
        'import pkgutil, sys\n'
        f'sys.modules.update(dict.fromkeys({sorted(OF_SERVICES)!r}))\n'
        'import nova_precache.osc as osc\n'
        'for each in pkgutil.iter_modules(osc.__path__, "nova_precache.osc."):\n'
        '    __import__(each.name)\n'
    )

    assert _python(script).stderr == ''


def test_missing_extra_named_by_command() -> None:
    ran = _python(WITHOUT_SERVER)

    assert (ran.returncode, ran.stderr) == (
        1,
        'nova-precache-api needs the extra "server": install nova-precache[server]\n',
    )


def _python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
        cwd=ROOT,
    )


def _pins() -> dict[str, str]:
    lines = CONSTRAINTS.read_text().splitlines()
    pins = [line.partition('==')[::2] for line in lines if not line.startswith('#')]
    names = [name for name, _ in pins]
    assert names == sorted({utils.canonicalize_name(name) for name in names})
    return dict(pins)


@pytest.mark.parametrize('extra', [None, 'eventlet', 'mysql', 'osc', 'postgresql', 'server'])
def test_constraints_pin_allowed_versions(extra: str | None) -> None:
    pins = _pins()
    required = _base() if extra is None else _extra(extra)

    assert required
    for name, each in required.items():
        assert name in pins, f'{each}: run python -m tools.constraints'
        assert each.specifier.contains(pins[name]), f'{each}, but {name}=={pins[name]}'


def test_installed_versions_match_constraints() -> None:
    script = (ROOT / 'tools' / 'common.sh').read_text()
    installs = re.findall(r'^.*/bin/pip" install .*what.*$', script, re.MULTILINE)

    assert len(installs) == 1
    assert '--constraint etc/nova-precache/constraints.txt' in installs[0]
