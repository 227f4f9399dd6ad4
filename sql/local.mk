# SPDX-License-Identifier: PostgreSQL
# pkgdatadir/sql/PART/NNNN-what.sql, see common/pg/schema.h
sqlhowdahdir = $(pkgdatadir)/sql/howdah
dist_sqlhowdah_DATA = sql/howdah/0001-node.sql sql/howdah/0002-gap.sql sql/howdah/0003-node-logs.sql

sqlmqttdir = $(pkgdatadir)/sql/howdah_mqtt
dist_sqlmqtt_DATA = sql/howdah_mqtt/0001-mqtt.sql sql/howdah_mqtt/0002-message.sql

sqlwatchdir = $(pkgdatadir)/sql/howdah_watch
dist_sqlwatch_DATA = sql/howdah_watch/0001-log.sql

EXTRA_DIST += sql/README.md
