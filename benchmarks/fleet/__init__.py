# SPDX-License-Identifier: Apache-2.0
"""What it costs a conductor to have images cached by a whole fleet of simulated computes."""
