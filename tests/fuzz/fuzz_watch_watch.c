/* SPDX-License-Identifier: PostgreSQL */
/* Watches: the input decides what streams ask and what happens to the store; a model judges each
 * response (tests/unit/watch_model.h). */
#include "config.h"

#include <stddef.h>
#include <stdint.h>

#include "tests/unit/watch_model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *p;
	size_t left;
};

static uint32_t below(uint32_t n, void *arg)
{
	struct input *in = arg;
	uint32_t v = 0;
	/* As many bytes as the choice needs. */
	for (uint32_t max = 1; max < n && in->left > 0; max <<= 8, in->left--)
		v = v << 8 | *in->p++;
	return v % n;
}

static bool is_over(void *arg)
{
	return ((const struct input *)arg)->left == 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size > 4096)
		return 0;
	struct input in = {.p = data, .left = size};
	const struct wm_source src = {.below = below, .is_over = is_over, .arg = &in};
	struct wm_counts counts;
	wm_run(&src, &counts);
	return 0;
}
