# SPDX-License-Identifier: Apache-2.0
"""The real servers that tests, tools and benchmarks start."""
