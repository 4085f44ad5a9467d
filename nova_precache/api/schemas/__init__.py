# SPDX-License-Identifier: Apache-2.0
"""JSON schemas of bodies, queries and answers, one module per resource."""
