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


def test_each_service_has_unit() -> None:
    services = {'api', 'compute', 'conductor'}
    assert {path.stem for path in UNITS} == {f'nova-precache-{each}' for each in services}


@pytest.mark.parametrize('path', UNITS, ids=lambda path: str(path.stem))
def test_unit_starts_installed_command(
    path: pathlib.Path,
) -> None:
    service = _unit(path)['Service']
    home, _, command = service['ExecStart'].rpartition('/bin/')

    assert command == path.stem
    assert re.search(rf'^ +{command} = ', (ROOT / 'setup.cfg').read_text(), re.MULTILINE)
    assert f'python3 -m venv {home}\n' in GUIDE
    assert (service['Type'], service['ExecReload']) == ('notify', '/bin/kill -HUP $MAINPID')


def test_conductor_unit_waits_for_calls() -> None:
    unit = _unit(ROOT / 'etc' / 'systemd' / 'nova-precache-conductor.service')
    conf = configuration.new(config_files=[])

    assert float(unit['Service']['TimeoutStopSec']) > 2 * conf.conductor.stop_timeout_seconds


@pytest.mark.parametrize('path', UNITS, ids=lambda path: str(path.stem))
def test_only_compute_has_touch_capability(
    path: pathlib.Path,
) -> None:
    service = _unit(path)['Service']
    granted = service['CapabilityBoundingSet'], service.get('AmbientCapabilities', '')
    wanted = 'CAP_FOWNER' if path.stem == 'nova-precache-compute' else ''
    assert granted == (wanted, wanted)


def test_package_has_exactly_units_and_samples() -> None:
    lines = _setup()['files']['data_files'].strip().splitlines()
    shipped = {line.strip() for line in lines if not line.strip().endswith('=')}

    samples = (ROOT / 'etc' / 'nova-precache').iterdir()
    wanted = {*UNITS, *(path for path in samples if not path.name.endswith('-generator.conf'))}
    assert {str(path.relative_to(ROOT)) for path in wanted} <= shipped
    assert [line for line in shipped if not (ROOT / line).is_file()] == []
