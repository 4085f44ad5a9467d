# SPDX-License-Identifier: Apache-2.0
"""Benchmark of a conductor that caches images on a fleet of simulated computes."""
