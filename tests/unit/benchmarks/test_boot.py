# SPDX-License-Identifier: Apache-2.0
"""Boots are compared round by round."""

import pytest

from benchmarks import boot


def test_cold_and_warm_have_median_ratio() -> None:
    # In the last round the machine was three times as slow, for both kinds.
    cold = [boot.Boot(10.0, 11.0), boot.Boot(8.0, 9.0), boot.Boot(30.0, 33.0)]
    warm = [boot.Boot(2.0, 3.0), boot.Boot(2.0, 3.0), boot.Boot(6.0, 9.0)]

    table = boot.tabulated({'qcow2': boot.Measured(cold, warm)})

    assert table.rows == (
        ('qcow2', 'ACTIVE', '10.00', '2.00', '5.0'),
        ('qcow2', 'the guest writes', '11.00', '3.00', '3.7'),
    )


def test_images_type_without_file_cache_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        boot.main(['--images-type=qcow2,rbd'])

    assert '--images-type: no such images_type: rbd' in capsys.readouterr().err
