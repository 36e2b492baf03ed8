#include "drivers/mac.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/digest.h"

int driver_mac_from(const char *machine_id, const char *instance_dir, char out[DRIVER_MAC_SIZE],
		    struct error *err)
{
	scoped_free char *text = xasprintf("%s%s", machine_id, instance_dir);
	char digest[DIGEST_TEXT_SIZE];
	const char *hex = digest + strlen("sha256:");

	if (digest_text("sha256", text, strlen(text), digest, err) < 0)
		return error_wrap(err, "MAC address");
	snprintf(out, DRIVER_MAC_SIZE, "52:55:55:%.2s:%.2s:%.2s", hex, hex + 2, hex + 4);
	return 0;
}

/* First word of the file, "" when there is none. */
static void read_word(const char *path, char *out, size_t size)
{
	scoped_buf struct buf b = { 0 };
	struct error ignored = ERROR_NONE;

	out[0] = 0;
	if (path_read_file(path, 4096, &b, &ignored) < 0)
		return;
	snprintf(out, size, "%.*s", (int)strcspn(buf_str(&b), " \t\r\n"), buf_str(&b));
}

int driver_mac(const char *instance_dir, char out[DRIVER_MAC_SIZE], struct error *err)
{
	static const char *const files[] = { "/etc/machine-id", "/var/lib/dbus/machine-id" };
	char id[256] = "";

	for (size_t i = 0; i < ARRAY_SIZE(files) && !id[0]; i++)
		read_word(files[i], id, sizeof(id));
	if (!id[0] && gethostname(id, sizeof(id) - 1) < 0)
		id[0] = 0;
	return driver_mac_from(id, instance_dir, out, err);
}
