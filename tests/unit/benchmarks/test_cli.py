# SPDX-License-Identifier: Apache-2.0
"""What the commands of the benchmarks share."""

import argparse
import json
import pathlib

import pytest

from benchmarks import cli, report

MET, MISSED = report.Finding('CPU', 1.0, target=2.0), report.Finding('CPU', 3.0, target=2.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument('--hosts', type=cli.numbers(1), default=[1, 2])
    parser.add_argument('--kind', type=cli.names(['a', 'b'], 'kind'), default=['a'])
    parser.add_argument('--delay-ms', type=int, default=0)
    parser.add_argument('--every', action='store_true')
    parser.add_argument('--no-broker', dest='broker', action='store_false')
    cli.add_output_options(parser)
    return parser


def _results(*findings: report.Finding) -> cli.Results:
    table = report.Table('Medians', ('case',), (('raw',),))
    return cli.Results('tox -e bench', '5 rounds', '2 cores.', [table], findings, {'rounds': 5})


@pytest.mark.parametrize(
    ('arguments', 'command'),
    [
        ([], 'tox -e fleet'),
        (['--hosts=1,2', '--check', '--json=here'], 'tox -e fleet'),
        (['--hosts=3', '--delay-ms=5'], 'tox -e fleet -- --hosts=3 --delay-ms=5'),
        (['--kind=b,a'], 'tox -e fleet -- --kind=b,a'),
        (['--every', '--no-broker'], 'tox -e fleet -- --every --no-broker'),
    ],
)
def test_the_command_names_changed_options(arguments: list[str], command: str) -> None:
    parser = _parser()
    given = parser.parse_args(arguments)

    made = cli.command('fleet', parser, given, ('hosts', 'kind', 'delay-ms', 'every', 'broker'))

    assert made == command
    assert parser.parse_args(made.split()[4:]).hosts == given.hosts


@pytest.mark.parametrize(
    ('argument', 'reason'),
    [('--hosts=2,0', '0 is less than 1'), ('--kind=a,c', 'no such kind: c')],
)
def test_a_bad_list_names_its_option(
    argument: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parser().parse_args([argument])

    assert f'argument {argument.partition("=")[0]}: {reason}' in capsys.readouterr().err


def test_results_are_printed_and_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rst, json_file = tmp_path / 'tables.rst', tmp_path / 'results.json'

    _results(MISSED).publish(rst=rst, json_file=json_file)

    printed = capsys.readouterr().out
    assert '5 rounds. 2 cores.' in printed
    assert 'NOT met' in printed
    assert rst.read_text().startswith('``tox -e bench``, ')
    document = json.loads(json_file.read_text())
    assert (document['rounds'], document['findings'][0]['is_met']) == (5, False)


@pytest.mark.parametrize(
    ('arguments', 'finding', 'status'),
    [(['--check'], MET, 0), (['--check'], MISSED, 1), ([], MISSED, 0)],
)
def test_a_missed_target_fails_a_check(
    arguments: list[str], finding: report.Finding, status: int
) -> None:
    assert _results(finding).status(_parser().parse_args(arguments)) == status
