#include "hostagent/loopback.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "hostagent/forward/address.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/instance.h"
#include "lib/store/layout.h"
#include "lib/store/lock.h"

enum { LOOPBACK_FIRST = 2, LOOPBACK_LAST = 254, LOOPBACK_TEXT_MAX = 64 };

static bool read_last(const char *instance_dir, unsigned *ret)
{
	scoped_free char *path = layout_instance_file(instance_dir, FILE_LOOPBACK);
	scoped_buf struct buf b = { 0 };

	return path_read_file(path, LOOPBACK_TEXT_MAX, &b, &(struct error){ 0 }) == 0 &&
	       sscanf(buf_str(&b), "127.0.0.%3u", ret) == 1 && *ret >= LOOPBACK_FIRST &&
	       *ret <= LOOPBACK_LAST;
}

bool loopback_read(const char *instance_dir, struct in6_addr *ret)
{
	unsigned last;

	if (!read_last(instance_dir, &last))
		return false;
	*ret = address_v4(127, 0, 0, (uint8_t)last);
	return true;
}

static int mark_taken(const char *lima_home, bool taken[256], struct error *err)
{
	scoped_strv struct strv names = { 0 };
	const char *name;
	unsigned last;

	taken[53] = taken[54] = true;	/* systemd-resolved(8) */
	if (instance_list(lima_home, &names, err) < 0)
		return err->code;
	strv_foreach (name, &names) {
		scoped_free char *dir = layout_instance_dir(lima_home, name);

		if (read_last(dir, &last))
			taken[last] = true;
	}
	return 0;
}

/* Spreads, so that two homes on one host seldom meet. */
static unsigned first_try(const char *lima_home, const char *name)
{
	uint32_t h = 2166136261u; /* FNV-1a */

	for (const char *p = lima_home; *p; p++)
		h = (h ^ (uint8_t)*p) * 16777619u;
	for (const char *p = name; *p; p++)
		h = (h ^ (uint8_t)*p) * 16777619u;
	return LOOPBACK_FIRST + h % (LOOPBACK_LAST - LOOPBACK_FIRST + 1);
}

static int write_last(const char *instance_dir, unsigned last, struct error *err)
{
	scoped_free char *path = layout_instance_file(instance_dir, FILE_LOOPBACK);
	char text[LOOPBACK_TEXT_MAX];
	int len = snprintf(text, sizeof(text), "127.0.0.%u\n", last);

	return path_write_file(path, text, (size_t)len, 0644, err);
}

int loopback_choose(const char *lima_home, const char *name, struct in6_addr *ret,
		    struct error *err)
{
	scoped_free char *dir = layout_instance_dir(lima_home, name);
	unsigned last = first_try(lima_home, name), tries = 0;
	bool taken[256] = { false };
	scoped_fd int lock = -1;	/* two that start at once */

	if (loopback_read(dir, ret))
		return 0;
	if (lock_creation(lima_home, "start", &lock, err) < 0 ||
	    mark_taken(lima_home, taken, err) < 0)
		return err->code;
	while (taken[last] && tries++ < LOOPBACK_LAST)
		last = last == LOOPBACK_LAST ? LOOPBACK_FIRST : last + 1;
	if (taken[last])
		return error_set(err, -EADDRNOTAVAIL,
				 "loopback-per-instance: other instances have all of 127.0.0.2–254; "
				 "delete some or choose another portForwarding.conflict");
	if (write_last(dir, last, err) < 0)
		return error_wrap(err, "loopback-per-instance");
	*ret = address_v4(127, 0, 0, (uint8_t)last);
	return 0;
}
