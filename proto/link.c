#include "proto/link.h"

#include <string.h>

#include "lib/base/mem.h"

void link_ack_magic(const uint8_t secret[LINK_MAGIC_SIZE], uint8_t ret[LINK_MAGIC_SIZE])
{
	for (size_t i = 0; i < LINK_MAGIC_SIZE; i++)
		ret[i] = (uint8_t)~secret[i];
}

bool link_find(const uint8_t magic[LINK_MAGIC_SIZE], const uint8_t *data, size_t len, size_t *at)
{
	const uint8_t *found = len > 0 ? memmem(data, len, magic, LINK_MAGIC_SIZE) : NULL;
	size_t tail;

	if (found) {
		*at = (size_t)(found - data);
		return len - *at >= LINK_FRAME_SIZE;
	}
	tail = MIN(len, (size_t)LINK_MAGIC_SIZE - 1);
	while (tail > 0 && memcmp(data + len - tail, magic, tail) != 0)
		tail--;
	*at = len - tail;
	return false;
}
