#include "drivers/mac.h"

#include <assert.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/base/mem.h"
#include "lib/base/path.h"

const char *driver_mac_from(const char *machine_id, const char *instance_dir,
			    char out[DRIVER_MAC_SIZE])
{
	scoped_free char *text = xasprintf("%s%s", machine_id, instance_dir);
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned len = 0;
	int ok = EVP_Digest(text, strlen(text), md, &len, EVP_sha256(), NULL);

	assert(ok == 1 && len == 32);
	snprintf(out, DRIVER_MAC_SIZE, "52:55:55:%02x:%02x:%02x", md[0], md[1], md[2]);
	return out;
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

const char *driver_mac(const char *instance_dir, char out[DRIVER_MAC_SIZE])
{
	static const char *const files[] = { "/etc/machine-id", "/var/lib/dbus/machine-id" };
	char id[256] = "";

	for (size_t i = 0; i < ARRAY_SIZE(files) && !id[0]; i++)
		read_word(files[i], id, sizeof(id));
	if (!id[0] && gethostname(id, sizeof(id) - 1) < 0)
		id[0] = 0;
	return driver_mac_from(id, instance_dir, out);
}
