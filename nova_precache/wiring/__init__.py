# SPDX-License-Identifier: Apache-2.0
"""Builds the object graphs of the API, the conductor and the compute, one module each.

The only place that reads options and passes objects to each other.
"""
