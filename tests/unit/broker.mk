# SPDX-License-Identifier: PostgreSQL
# Unit tests: broker
