# SPDX-License-Identifier: Apache-2.0
"""What caching an image costs, measured beside stock Nova; and a soak of the same code.

``python -m benchmarks`` and ``python -m benchmarks.soak``, from the top of the
repository. Nothing of this is installed with the service.
"""
