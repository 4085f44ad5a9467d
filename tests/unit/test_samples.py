# SPDX-License-Identifier: Apache-2.0
"""The committed samples equal the generators' output for the options and the rules.

Only our own options of the configuration are compared: those of the libraries in it
change with each of their releases.
"""

import io
import pathlib
import re

import pytest
from oslo_config import cfg, generator as config_generator
from oslo_policy import generator as policy_generator

from nova_precache import conf as configuration
from nova_precache.conf import glance

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLES = ROOT / 'etc' / 'nova-precache'

Name = tuple[str, str]


def test_sample_configuration_has_every_option() -> None:
    committed = _own_blocks((SAMPLES / 'nova-precache.conf.sample').read_text())
    generated = _own_blocks(_generate_configuration())

    assert {name: committed.get(name) for name in _own_options()} == {
        name: generated[name] for name in _own_options()
    }, 'run "tox -e genconfig"'


def test_sample_configuration_has_no_removed_option() -> None:
    committed = set(_own_blocks((SAMPLES / 'nova-precache.conf.sample').read_text()))
    keystone = {('glance', option.dest) for option in glance.library_options()}

    assert committed - keystone - _own_options() == set(), 'run "tox -e genconfig"'


def test_sample_policy_has_every_rule(tmp_path: pathlib.Path) -> None:
    generated = tmp_path / 'policy.yaml'
    arguments = ['--namespace', 'nova_precache', '--output-file', str(generated)]

    policy_generator.generate_sample(arguments, conf=cfg.ConfigOpts())

    committed = (SAMPLES / 'policy.yaml.sample').read_text()
    assert committed == generated.read_text(), 'run "tox -e genpolicy"'


def test_option_found_by_group_and_name() -> None:
    sample = (
        '[DEFAULT]\n\n#\n# From oslo.log\n#\n\n# Noise.\n#debug = false\n\n\n'
        '[api]\n\n#\n# From nova_precache\n#\n\n# Threads. (integer value)\n#threads = 16\n'
    )

    assert _own_blocks(sample) == {('api', 'threads'): '# Threads. (integer value)\n#threads = 16'}


def _own_options() -> set[Name]:
    return {
        ('DEFAULT' if module.GROUP is None else str(module.GROUP.name), option.dest)
        for module in configuration.MODULES
        for option in module.OPTIONS
    }


def _generate_configuration() -> str:
    conf = cfg.ConfigOpts()
    config_generator.register_cli_opts(conf)
    conf(['--config-file', str(SAMPLES / 'nova-precache-config-generator.conf')])
    output = io.StringIO()
    config_generator.generate(conf, output_file=output)
    return output.getvalue()


def _own_blocks(sample: str) -> dict[Name, str]:
    """Split a sample: the text of each of our options, by group and name."""
    blocks: dict[Name, str] = {}
    group = namespace = ''
    for block in re.split(r'\n\n+', sample.strip()):
        if header := re.match(r'\[(.+)\]', block):
            group = header[1]
        elif origin := re.search(r'^# From (\S+)$', block, re.MULTILINE):
            namespace = origin[1]
        elif namespace == 'nova_precache' and (option := re.search(r'^#(\w+) =', block, re.M)):
            blocks[group, option[1]] = block
    return blocks


@pytest.mark.parametrize('name', sorted(_own_options()))
def test_every_option_has_help(name: Name) -> None:
    [option] = [
        option
        for group, options in configuration.list_opts()
        for option in options
        if (group, option.dest) == name
    ]

    assert option.help
    assert option.help.strip().endswith('.')
