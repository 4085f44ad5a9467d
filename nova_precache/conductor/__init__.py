# SPDX-License-Identifier: Apache-2.0
"""The conductor: plans requests, claims hosts, calls computes, keeps the record."""
