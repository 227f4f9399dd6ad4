# SPDX-License-Identifier: PostgreSQL
# Unit tests: base
