-- SPDX-License-Identifier: PostgreSQL
-- The message log: every QoS 1 publish of a client, committed before its PUBACK. Append only; rows are
-- removed by age, found by the primary key, since batch is a time in microseconds since the epoch.

CREATE SCHEMA IF NOT EXISTS howdah_mqtt;

CREATE TABLE howdah_mqtt.message (
	batch      bigint      NOT NULL, -- token of the batch that wrote it
	node       text        NOT NULL, -- the node whose client sent it
	sub        int         NOT NULL, -- position in the batch
	at         timestamptz NOT NULL DEFAULT now(),
	client_id  text        NOT NULL,
	topic      text        NOT NULL,
	qos        smallint    NOT NULL,
	payload    bytea       NOT NULL,
	properties bytea,                -- MQTT 5 properties as they were encoded; NULL: none
	PRIMARY KEY (batch, node, sub)
);
COMMENT ON TABLE howdah_mqtt.message IS
	'QoS 1 messages published by MQTT clients; kept for an hour; written by brokerd';
