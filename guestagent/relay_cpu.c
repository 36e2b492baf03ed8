#include "guestagent/relay_cpu.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef __x86_64__
#include <cpuid.h>
#endif

#include "lib/base/mem.h"

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

/* Of entries @prefix and a number the lowest number above @floor; -1: none. */
static int next_above(int floor, const char *path, const char *prefix)
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
		if (end != number && !*end && n > floor && n <= INT_MAX && (ret < 0 || n < ret))
			ret = (int)n;
	}
	return ret;
}

/* The first vector is for configuration changes, the second for all queues or for the
 * first of them, which brings us what the host sends (virtio_pci_common.c,
 * vp_find_vqs_msix()). -1: the device has none. */
static int find_irq(const char *root)
{
	static const char driver[] = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
	scoped_free char *devices = xasprintf("%s%s", root, driver);
	int device = next_above(-1, devices, "virtio"), config;
	scoped_free char *vectors = xasprintf("%s/virtio%d/../msi_irqs", devices, device);

	if (device < 0)
		return -1;
	config = next_above(-1, vectors, "");
	return config < 0 ? -1 : next_above(config, vectors, "");
}

int relay_cpu_find(const char *root)
{
	int irq = find_irq(root);
	scoped_free char *path = xasprintf("%s/proc/irq/%d/effective_affinity_list", root, irq);
	scoped_fd int fd = irq < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	char list[64], *end;	/* "0-3,8" */
	ssize_t n = fd < 0 ? -1 : read(fd, list, sizeof(list) - 1);
	long cpu;

	if (n <= 0)
		return -1;
	list[n] = 0;
	cpu = strtol(list, &end, 10);
	return end != list && cpu >= 0 && cpu < CPU_SETSIZE ? (int)cpu : -1;
}
