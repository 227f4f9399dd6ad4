# SPDX-License-Identifier: PostgreSQL
EXTRA_DIST += etc/howdah.conf
