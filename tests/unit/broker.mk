# SPDX-License-Identifier: PostgreSQL
# Unit tests: broker
# Table changes
CHANGES_LIBS = brokerd/libbrokerd.a libpgwalstream/libpgwalstream.a $(BASE_LIBS) $(LIBPQ_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_tojson tests/unit/test_tojson_server tests/unit/test_template \
	tests/unit/test_tracker
TESTS += tests/unit/test_tojson tests/unit/test_tojson_server tests/unit/test_template \
	tests/unit/test_tracker
tests_unit_test_tojson_SOURCES = tests/unit/test_tojson.c
tests_unit_test_tojson_LDADD = $(CHANGES_LIBS)
tests_unit_test_tojson_server_SOURCES = tests/unit/test_tojson_server.c
tests_unit_test_tojson_server_LDADD = $(CHANGES_LIBS)
tests_unit_test_template_SOURCES = tests/unit/test_template.c
tests_unit_test_template_LDADD = $(CHANGES_LIBS)
tests_unit_test_tracker_SOURCES = tests/unit/test_tracker.c
tests_unit_test_tracker_LDADD = $(CHANGES_LIBS)
