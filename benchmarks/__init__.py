# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the cost of caching an image, beside stock Nova; and a soak of the same code.

Run ``python -m benchmarks`` and ``python -m benchmarks.soak`` from the top of the repository.
They are not installed with the service.
"""
