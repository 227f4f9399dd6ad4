# SPDX-License-Identifier: PostgreSQL
# Documentation in source form: installed, not built. tests/system/test_examples.py builds and runs them.
examplesdir = $(docdir)/examples
dist_examples_DATA = \
	examples/README.md \
	examples/basic.c \
	examples/decode_file.c \
	examples/event_loop.c \
	examples/rate_limited.c \
	examples/safe_transactions.c \
	examples/show.h \
	examples/threads.c \
	# end
