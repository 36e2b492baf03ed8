/* The relay's thread follows the vsock's interrupts: where they are is read from a
 * tree like /sys and /proc. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "guestagent/relay_cpu.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "test/mock/relay_fx.h"

#define DRIVER "sys/bus/virtio/drivers/vmw_vsock_virtio_transport"

static char root[64];

static void make_dir(const char *path)
{
	scoped_free char *whole = xasprintf("%s/%s", root, path);
	struct error err = ERROR_NONE;

	assert_int_equal(path_mkdir_all(whole, 0755, &err), 0);
}

static void make_irq(int irq, const char *cpus)
{
	scoped_free char *vector = xasprintf("sys/devices/pci/msi_irqs/%d", irq);
	scoped_free char *dir = xasprintf("proc/irq/%d", irq);
	scoped_free char *file = xasprintf("%s/%s/effective_affinity_list", root, dir);
	struct error err = ERROR_NONE;

	make_dir(vector);
	make_dir(dir);
	assert_int_equal(path_write_file(file, cpus, strlen(cpus), 0644, &err), 0);
}

static int set_up(void **state)
{
	scoped_free char *link = NULL;

	strcpy(root, "/tmp/lima-relay-cpu-XXXXXX");
	assert_non_null(mkdtemp(root));
	link = xasprintf("%s/" DRIVER "/virtio6", root);
	make_dir("sys/devices/pci/virtio6");
	make_dir(DRIVER);
	assert_int_equal(symlink("../../../../devices/pci/virtio6", link), 0);
	return 0;
}

static int tear_down(void **state)
{
	struct error err = ERROR_NONE;

	assert_int_equal(path_remove_tree(root, &err), 0);
	return 0;
}

static void test_relay_cpu_is_that_of_the_queues_vector(void **state)
{
	make_irq(9, "1\n");	/* configuration changes */
	assert_int_equal(relay_cpu_find(root), -1);
	make_irq(10, "12-13\n");
	assert_int_equal(relay_cpu_find(root), 12);
	make_irq(100, "3\n");	/* a vector for each queue: the first one's */
	assert_int_equal(relay_cpu_find(root), 12);
}

static void test_relay_cpu_without_a_device(void **state)
{
	assert_int_equal(relay_cpu_find(root), -1);
	assert_int_equal(relay_cpu_find("/nonexistent"), -1);
}

static void test_relay_cpu_not_told(void **state)
{
	static const char *const lists[] = { "", "\n", "none\n", "-1\n", "99999999\n" };

	make_irq(9, "0\n");
	for (size_t i = 0; i < ARRAY_SIZE(lists); i++) {
		make_irq(10, lists[i]);
		assert_int_equal(relay_cpu_find(root), -1);
	}
}

/* --- the thread ----------------------------------------------------------------- */

static atomic_int thread, wanted;

static int tell_cpu(void *arg)
{
	thread = (int)gettid();
	return wanted;
}

static int listen_at(struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	snprintf(addr->sun_path, sizeof(addr->sun_path), "%s/relay", root);
	assert_int_equal(bind(fd, (struct sockaddr *)addr, sizeof(*addr)), 0);
	assert_int_equal(listen(fd, 8), 0);
	return fd;
}

static bool runs_only_on(int tid, int cpu)
{
	cpu_set_t set;

	return sched_getaffinity(tid, sizeof(set), &set) == 0 && CPU_COUNT(&set) == 1 &&
	       CPU_ISSET(cpu, &set);
}

static void test_relay_cpu_takes_the_thread(void **state)
{
	const struct relay_options opts = { .cpu = tell_cpu };
	struct error err = ERROR_NONE;
	struct sockaddr_un addr;
	struct relay *r;
	cpu_set_t ours;
	int fd;

	wanted = 0;	/* the last that we may have, whatever the machine */
	assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &ours))
			wanted = cpu;
	assert_int_equal(relay_new(&opts, &r, &err), 0);
	relay_listen(r, listen_at(&addr));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	wait_until(thread != 0 && runs_only_on(thread, wanted));
	assert_int_not_equal(thread, gettid());
	assert_int_equal(sched_getaffinity(0, sizeof(ours), &ours), 0);
	assert_true(CPU_COUNT(&ours) > 1 || runs_only_on((int)gettid(), wanted));
	close(fd);
	relay_stop(r);
}

int main(void)
{
#define IN_A_TREE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		IN_A_TREE(test_relay_cpu_is_that_of_the_queues_vector),
		IN_A_TREE(test_relay_cpu_without_a_device),
		IN_A_TREE(test_relay_cpu_not_told),
		IN_A_TREE(test_relay_cpu_takes_the_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
