# SPDX-License-Identifier: PostgreSQL
# Unit tests: ring
