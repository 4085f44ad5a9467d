# SPDX-License-Identifier: Apache-2.0
"""The life of a job: wanted, locked, claimed with its host, assigned, begun, stopped, finished."""
