# SPDX-License-Identifier: PostgreSQL
# Unit tests: broker
# Table changes
CHANGES_LIBS = brokerd/libbrokerd.a $(PGWS_LIBS) $(PG_LIBS) $(UNIT_LIBS)
check_PROGRAMS += tests/unit/test_tojson tests/unit/test_tojson_server.pg tests/unit/test_template \
	tests/unit/test_tracker
TESTS += tests/unit/test_tojson tests/unit/test_tojson_server.pg tests/unit/test_template \
	tests/unit/test_tracker
tests_unit_test_tojson_SOURCES = tests/unit/test_tojson.c
tests_unit_test_tojson_LDADD = $(CHANGES_LIBS)
tests_unit_test_tojson_server_pg_SOURCES = tests/unit/test_tojson_server.c
tests_unit_test_tojson_server_pg_LDADD = $(CHANGES_LIBS)
tests_unit_test_template_SOURCES = tests/unit/test_template.c
tests_unit_test_template_LDADD = $(CHANGES_LIBS)
tests_unit_test_tracker_SOURCES = tests/unit/test_tracker.c
tests_unit_test_tracker_LDADD = $(CHANGES_LIBS)
# MQTT
check_PROGRAMS += tests/unit/test_mqtt_proto tests/unit/test_topic tests/unit/test_session
TESTS += tests/unit/test_mqtt_proto tests/unit/test_topic tests/unit/test_session
tests_unit_test_mqtt_proto_SOURCES = tests/unit/test_mqtt_proto.c
tests_unit_test_mqtt_proto_LDADD = brokerd/libbrokerd.a $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_topic_SOURCES = tests/unit/test_topic.c
tests_unit_test_topic_LDADD = brokerd/libbrokerd.a $(BASE_LIBS) $(UNIT_LIBS)
tests_unit_test_session_SOURCES = tests/unit/test_session.c
tests_unit_test_session_LDADD = brokerd/libbrokerd.a $(PG_LIBS) $(UNIT_LIBS)

check_PROGRAMS += tests/unit/test_changes.pg
TESTS += tests/unit/test_changes.pg
tests_unit_test_changes_pg_SOURCES = tests/unit/test_changes.c
tests_unit_test_changes_pg_LDADD = brokerd/libbrokerd.a $(PGWS_LIBS) $(RING_LIBS) $(PG_LIBS) \
	$(UNIT_LIBS)
