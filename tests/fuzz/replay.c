/* SPDX-License-Identifier: PostgreSQL */
/*
 * Replays the seeds of a fuzz target in plain `make check`: every file in
 * HOWDAH_SRCDIR/tests/fuzz/corpus/NAME, NAME from the program's own name (fuzz_NAME), or the files
 * given as arguments. No seeds is a failure: a target without seeds tests nothing.
 */
#include "config.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path)
{
	FILE *f = fopen(path, "rb");
	if (f == NULL) {
		perror(path);
		return -1;
	}
	uint8_t *data = NULL;
	size_t len = 0, cap = 0, got;
	do {
		if (len == cap) {
			cap = cap == 0 ? 4096 : cap * 2;
			uint8_t *bigger = realloc(data, cap);
			if (bigger == NULL)
				abort();
			data = bigger;
		}
		got = fread(data + len, 1, cap - len, f);
		len += got;
	} while (got > 0);
	fclose(f);
	/* An exact-size copy, so that the sanitizers see a read past the end. */
	uint8_t *exact = malloc(len == 0 ? 1 : len);
	if (exact == NULL)
		abort();
	memcpy(exact, data, len);
	free(data);
	LLVMFuzzerTestOneInput(exact, len);
	free(exact);
	return 0;
}

static int replay_folder(const char *folder)
{
	DIR *d = opendir(folder);
	if (d == NULL) {
		perror(folder);
		return -1;
	}
	int n = 0;
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] == '.')
			continue;
		char path[4096 + 258];
		snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
		if (replay(path) != 0) {
			n = -1;
			break;
		}
		n++;
	}
	closedir(d);
	return n;
}

int main(int argc, char **argv)
{
	int n = 0;
	for (int i = 1; i < argc; i++, n++) {
		if (replay(argv[i]) != 0)
			return 1;
	}
	if (argc == 1) {
		const char *src = getenv("HOWDAH_SRCDIR");
		const char *name = strstr(argv[0], "fuzz_");
		for (const char *later = name; later != NULL; later = strstr(later + 1, "fuzz_"))
			name = later;
		char folder[4096];
		snprintf(folder, sizeof(folder), "%s/tests/fuzz/corpus/%s", src != NULL ? src : ".",
			name != NULL ? name + strlen("fuzz_") : "");
		n = replay_folder(folder);
	}
	printf("%d inputs replayed\n", n);
	return n > 0 ? 0 : 1;
}
