#include "guestagent/relay_cpu.h"

#include <dirent.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "lib/base/mem.h"
#include "lib/base/path.h"

bool relay_cpu_is_emulated(void)
{
#ifdef __x86_64__
	/* Hypervisors sign there; so does QEMU's TCG (target/i386, cpu_x86_cpuid()). */
	enum { HYPERVISOR_LEAF = 0x40000000 };
	unsigned eax, name[3];

	__cpuid(HYPERVISOR_LEAF, eax, name[0], name[1], name[2]);
	return memcmp(name, "TCGTCGTCGTCG", sizeof(name)) == 0;
#else
	return false;	/* not known how to tell */
#endif
}

/* Of entries @prefix and a number the highest number; -1: none. */
static int highest(const char *path, const char *prefix)
{
	scoped_dir DIR *dir = opendir(path);
	const struct dirent *e;
	int ret = -1;

	while (dir && (e = readdir(dir))) {
		const char *number = e->d_name + strlen(prefix);
		char *end;
		long n;

		if (strncmp(e->d_name, prefix, strlen(prefix)) != 0)
			continue;
		n = strtol(number, &end, 10);
		if (end != number && !*end && n <= INT_MAX)
			ret = MAX(ret, (int)n);
	}
	return ret;
}

/* The queues' vector is the last of the device; configuration changes have the first
 * (virtio_pci_common.c, vp_find_vqs_msix()). -1: it has none. */
static int find_irq(const char *root)
{
	static const char driver[] = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
	scoped_free char *devices = xasprintf("%s%s", root, driver);
	int device = highest(devices, "virtio");
	scoped_free char *vectors = xasprintf("%s/virtio%d/../msi_irqs", devices, device);

	return device < 0 ? -1 : highest(vectors, "");
}

int relay_cpu_find(const char *root)
{
	enum { LIST_MAX = 4096 };	/* "0-3,8" */
	scoped_buf struct buf list = { 0 };
	struct error err = ERROR_NONE;
	int irq = find_irq(root);
	scoped_free char *path = xasprintf("%s/proc/irq/%d/effective_affinity_list", root, irq);
	char *end;
	long cpu;

	if (irq < 0 || path_read_file(path, LIST_MAX, &list, &err) < 0)
		return -1;
	cpu = strtol(buf_str(&list), &end, 10);
	return end != buf_str(&list) && cpu >= 0 && cpu < CPU_SETSIZE ? (int)cpu : -1;
}
