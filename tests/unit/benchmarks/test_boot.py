# SPDX-License-Identifier: Apache-2.0
"""Boots are compared round by round."""

import pytest

from benchmarks import boot


def test_cold_and_warm_stand_side_by_side_with_the_median_of_the_rounds_ratios() -> None:
    # In the last round the machine was three times as slow, for both kinds.
    cold = [boot.Boot(10.0, 11.0), boot.Boot(8.0, 9.0), boot.Boot(30.0, 33.0)]
    warm = [boot.Boot(2.0, 3.0), boot.Boot(2.0, 3.0), boot.Boot(6.0, 9.0)]

    table = boot.tabulated({'qcow2': boot.Measured(cold, warm)})

    assert table.rows == (
        ('qcow2', 'ACTIVE', '10.00', '2.00', '5.0'),
        ('qcow2', 'the guest writes', '11.00', '3.00', '3.7'),
    )


def test_an_images_type_that_has_no_file_cache_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        boot.main(['--images-type=qcow2,rbd'])

    assert '--images-type: no such images_type: rbd' in capsys.readouterr().err
