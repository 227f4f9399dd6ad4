/* SPDX-License-Identifier: PostgreSQL */
/* The store and its model, driven by the input (tests/unit/store_model.h). */
#include "config.h"

#include "tests/unit/store_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BYTES_MAX 4096 /* more is slower, not different */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	store_model_run(data, size < BYTES_MAX ? size : BYTES_MAX);
	return 0;
}
