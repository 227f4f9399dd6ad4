/* SPDX-License-Identifier: PostgreSQL */
/*
 * Between the codec's own files: reading text and properties. Everybody else uses mqtt_proto.h.
 */
#ifndef BROKERD_MQTT_DECODE_H
#define BROKERD_MQTT_DECODE_H

#include "brokerd/mqtt_proto.h"

/* Fills *e (its version is kept) and returns -ERR_MALFORMED. */
int mqtt_refuse(struct mqtt_error *e, uint8_t reason, const char *why);
/* Two-byte length and bytes; string: valid UTF-8. */
int mqtt_get_binary(struct rd *r, struct mqtt_bytes *ret_v, struct mqtt_error *e)
	__attribute__((warn_unused_result));
int mqtt_get_string(struct rd *r, struct mqtt_bytes *ret_v, struct mqtt_error *e)
	__attribute__((warn_unused_result));
/* Length and properties that may stand in where (one MQTT_IN bit or MQTT_IN_WILL). */
int mqtt_get_props(struct rd *r, uint32_t where, struct mqtt_props *ret_props, struct mqtt_error *e)
	__attribute__((warn_unused_result));

#endif
