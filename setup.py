# SPDX-License-Identifier: Apache-2.0
"""Hands the build to pbr, which reads setup.cfg and the requirements files."""

import setuptools

setuptools.setup(pbr=True)
