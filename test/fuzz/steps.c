#include "test/fuzz/fuzz.h"

enum { STEPS_MAX = 200 };

int fuzz_run_steps(const struct fuzz_steps *s, const uint8_t *data, size_t len)
{
	struct fuzz_input in = { data, len };

	fuzz_note_descriptors();
	s->begin();
	for (unsigned i = 0; in.len && i < STEPS_MAX; i++)
		s->steps[fuzz_take(&in) % s->n](&in);
	s->end();
	fuzz_check_descriptors();
	return 0;
}
