/* serial.h - waits for the virtio-serial port and its secret, then serves it
 *
 * The agent may start before the port's driver, before udev made the name under
 * /dev/virtio-ports, and before the seed left the secret. The driver's own name
 * for the port is in sysfs, so udev is not waited for. Nothing is polled but for
 * a retry after a failure to open.
 */
#pragma once

#include "lib/base/loop.h"
#include "proto/guest_server.h"

struct serial;

struct serial_options {
	const char *name;	/* "io.lima-vm.guest_agent.0", or the device "/dev/…" */
	const char *secret_file;	/* absolute; 32 hex digits in it */
};

struct serial *serial_new(struct loop *loop, const struct serial_options *opts,
			  struct guest_server *server);
void serial_close(struct serial *s, void (*closed)(void *arg), void *arg);

/* 32 hex digits, a line's end may follow. */
int serial_read_secret(const char *path, uint8_t ret[16], struct error *err);
