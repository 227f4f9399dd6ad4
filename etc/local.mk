# SPDX-License-Identifier: PostgreSQL
EXTRA_DIST += etc/README.md etc/howdah.conf
