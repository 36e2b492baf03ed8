/* fuzz.h - what a fuzz target is made of
 *
 * A target is one file, NAME.c, listed in CMakeLists.txt by lima_fuzz(NAME …). It
 * defines the two functions below and is run by libFuzzer where the compiler is
 * clang with its fuzzer library (cmake --preset fuzz -DCMAKE_C_COMPILER=clang),
 * else by driver.c, which does a simpler form of the same. Wrong is whatever
 * ASan or UBSan find, a failed assert, and an input that takes seconds.
 *
 *	LIMA_FUZZ_SECONDS=10 ctest --preset fuzz		all targets
 *	build/fuzz/test/fuzz/NAME_fuzz FILE			one input again
 *
 * Nothing is printed below an error while a target runs.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* Feeds one input to the code under test; leaves nothing behind. Returns 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Calls fuzz_seed_add() for each input to start from: one valid message of every
 * kind is worth hours of guessing. Also the place to set up what lives for ever. */
void fuzz_seeds(void);
void fuzz_seed_add(const void *data, size_t len);
/* A list of steps: without the zeros at its end, which it has anyhow (fuzz_take). */
void fuzz_seed_add_steps(const uint8_t *data, size_t len);

/* Which descriptors are open. Before an input is run, and after it the same. */
void fuzz_note_descriptors(void);
void fuzz_check_descriptors(void);

/* Reads an input from its front; past the end come zeros. */
struct fuzz_input {
	const uint8_t *data;
	size_t len;
};

static inline uint8_t fuzz_take(struct fuzz_input *in)
{
	if (in->len == 0)
		return 0;
	in->len--;
	return *in->data++;
}

static inline uint16_t fuzz_take16(struct fuzz_input *in)
{
	uint16_t low = fuzz_take(in);

	return (uint16_t)(low | fuzz_take(in) << 8);
}

/* A length of one byte, below @max, and so many of them, as far as there are. */
static inline size_t fuzz_take_bytes(struct fuzz_input *in, unsigned max, const uint8_t **ret)
{
	size_t len = fuzz_take(in) % max;

	len = len < in->len ? len : in->len;
	*ret = in->data;
	in->data += len;
	in->len -= len;
	return len;
}

/* An input that is a list of steps, up to 200: a byte says which, and the step takes
 * from the input what it wants. */
struct fuzz_steps {
	void (*begin)(void), (*end)(void);	/* around them; no descriptor stays open */
	void (*const *steps)(struct fuzz_input *in);
	size_t n;
};

/* For LLVMFuzzerTestOneInput(). */
int fuzz_run_steps(const struct fuzz_steps *s, const uint8_t *data, size_t len);
