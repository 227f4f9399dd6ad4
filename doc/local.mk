# SPDX-License-Identifier: PostgreSQL
dist_man_MANS += \
	doc/howdah.conf.5 \
	doc/howdahd.8 \
	doc/pgctl.1 \
	# end

EXTRA_DIST += doc/README.md
