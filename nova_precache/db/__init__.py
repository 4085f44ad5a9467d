# SPDX-License-Identifier: Apache-2.0
"""The database: the truth about requests, tasks, jobs, claims and agents."""
