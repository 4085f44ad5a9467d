# SPDX-License-Identifier: Apache-2.0
"""Tests of the REST APIs, a module for each resource."""
