# SPDX-License-Identifier: PostgreSQL
dist_man_MANS += \
	doc/howdah.conf.5 \
	doc/howdahd.8 \
	doc/pgctl.1 \
	doc/pgwalstream.3 \
	doc/pgws_assembler.3 \
	doc/pgws_catalog.3 \
	doc/pgws_consumer.3 \
	doc/pgws_decode.3 \
	doc/pgws_slot.3 \
	doc/pgws_stream.3 \
	# end

EXTRA_DIST += doc/README.md
