# SPDX-License-Identifier: Apache-2.0
"""The files to run the service with match the commands and the package."""

import configparser
import pathlib
import re

import pytest

from nova_precache import conf as configuration

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / 'etc' / 'systemd').glob('*.service'))
GUIDE = (ROOT / 'doc' / 'source' / 'admin.rst').read_text()


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    return setup


def _unit(path: pathlib.Path) -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(path)
    return unit


def test_each_service_has_a_unit() -> None:
    services = {'api', 'compute', 'conductor'}
    assert {path.stem for path in UNITS} == {f'nova-precache-{each}' for each in services}


@pytest.mark.parametrize('path', UNITS, ids=lambda path: str(path.stem))
def test_a_unit_starts_a_command_that_is_installed_where_the_guide_installs_it(
    path: pathlib.Path,
) -> None:
    service = _unit(path)['Service']
    home, _, command = service['ExecStart'].rpartition('/bin/')

    assert command == path.stem
    assert re.search(rf'^ +{command} = ', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)
    assert f'python3 -m venv {home}\n' in GUIDE
    assert (service['Type'], service['ExecReload']) == ('notify', '/bin/kill -HUP $MAINPID')


def test_a_conductor_is_not_killed_while_its_calls_may_end() -> None:
    unit = _unit(ROOT / 'etc' / 'systemd' / 'nova-precache-conductor.service')
    conf = configuration.new(config_files=[])

    assert float(unit['Service']['TimeoutStopSec']) > 2 * conf.conductor.stop_timeout_seconds


@pytest.mark.parametrize('path', UNITS, ids=lambda path: str(path.stem))
def test_a_compute_may_set_the_times_of_the_files_of_others_and_no_service_anything_else(
    path: pathlib.Path,
) -> None:
    service = _unit(path)['Service']
    granted = service['CapabilityBoundingSet'], service.get('AmbientCapabilities', '')
    wanted = 'CAP_FOWNER' if path.stem == 'nova-precache-compute' else ''
    assert granted == (wanted, wanted)


def test_the_package_has_the_units_and_the_samples_and_nothing_that_is_not_there() -> None:
    lines = _setup()['files']['data_files'].strip().splitlines()
    shipped = {line.strip() for line in lines if not line.strip().endswith('=')}

    samples = (ROOT / 'etc' / 'nova-precache').iterdir()
    wanted = {*UNITS, *(path for path in samples if not path.name.endswith('-generator.conf'))}
    assert {str(path.relative_to(ROOT)) for path in wanted} <= shipped
    assert [line for line in shipped if not (ROOT / line).is_file()] == []
