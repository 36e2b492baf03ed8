/* Runs before the first input: quiet, and the target's seeds as files in
 * $LIMA_FUZZ_SEEDS, where libFuzzer and driver.c look for them. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "lib/base/log.h"
#include "test/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);

static const char *seed_dir;
static unsigned seed_count;

void fuzz_seed_add(const void *data, size_t len)
{
	char path[4096];
	int fd;

	if (!seed_dir)
		return;
	snprintf(path, sizeof(path), "%s/seed-%03u", seed_dir, seed_count++);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, data, len) != (ssize_t)len) {
		perror(path);
		exit(EXIT_FAILURE);
	}
	close(fd);
}

void fuzz_seed_add_steps(const uint8_t *data, size_t len)
{
	while (len > 0 && data[len - 1] == 0)
		len--;
	fuzz_seed_add(data, len);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	log_setup(LOG_ERROR, LOG_FORMAT_TEXT);
	seed_dir = getenv("LIMA_FUZZ_SEEDS");
	fuzz_seeds();
	return 0;
}
