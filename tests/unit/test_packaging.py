# SPDX-License-Identifier: Apache-2.0
"""Every package is installed, except those for developers."""

import configparser
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAYS_HERE = {'benchmarks', 'tests', 'tools'}


def test_every_package_is_installed_unless_it_is_for_developers() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    there = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert set(setup['files']['packages'].split()) == there - STAYS_HERE
