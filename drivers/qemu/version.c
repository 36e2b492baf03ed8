#include "drivers/qemu/version.h"

#include <stdio.h>
#include <string.h>

bool qemu_version_parse(const char *text, struct qemu_version *ret)
{
	static const char mark[] = "version ";
	const char *at = strstr(text, mark);
	struct qemu_version v = { 0 };

	if (at)
		text = at + sizeof(mark) - 1;
	/* "9.0" is a version too; five digits are more than anybody needs */
	if (sscanf(text, "%5u.%5u.%5u", &v.major, &v.minor, &v.micro) < 2)
		return false;
	*ret = v;
	return true;
}

int qemu_version_compare(const struct qemu_version *a, const struct qemu_version *b)
{
	if (a->major != b->major)
		return a->major < b->major ? -1 : 1;
	if (a->minor != b->minor)
		return a->minor < b->minor ? -1 : 1;
	if (a->micro != b->micro)
		return a->micro < b->micro ? -1 : 1;
	return 0;
}

const char *qemu_version_text(const struct qemu_version *v, char out[QEMU_VERSION_SIZE])
{
	snprintf(out, QEMU_VERSION_SIZE, "%u.%u.%u", v->major, v->minor, v->micro);
	return out;
}
