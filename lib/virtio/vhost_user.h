/* vhost_user.h - QEMU hands a device's rings to us (QEMU docs/interop/vhost-user)
 *
 * The backend's side of vhost-user on a listening unix socket, for any device
 * with split rings. QEMU sends where the guest's memory is, where the rings are,
 * eventfds to be woken by and to interrupt with, and when a ring starts and stops.
 *
 * One QEMU at a time; another that calls meanwhile is hung up on, because one that
 * waits in the backlog would hang in its start. Whatever breaks the protocol ends
 * the connection with one line in the log, unmaps and closes everything; the next
 * QEMU may come.
 *
 * Nothing blocks: messages are read as they come, and an answer that the socket
 * does not take at once (they are tens of bytes, QEMU waits for them) ends the
 * connection.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"
#include "lib/virtio/vring.h"

enum { VHOST_USER_RINGS_MAX = 2, VHOST_USER_CONFIG_MAX = 256 };

struct vhost_user;

struct vhost_user_device {
	struct loop *loop;
	unsigned n_rings;
	const void *config;	/* the device's configuration space; lives as long */
	size_t config_len;	/* at most VHOST_USER_CONFIG_MAX */
	/* A ring runs from `started` until `stopping`, during which what was
	 * fetched from it may still be pushed. */
	void (*started)(void *arg, unsigned ring);
	void (*stopping)(void *arg, unsigned ring);
	void (*kicked)(void *arg, unsigned ring);
	/* QEMU hung up, or was hung up on. All rings were stopped before. */
	void (*gone)(void *arg, const struct error *why);
	void *arg;
};

/* @listen_fd: taken, also on failure. */
int vhost_user_new(const struct vhost_user_device *dev, int listen_fd, struct vhost_user **ret,
		   struct error *err);
struct vring *vhost_user_ring(struct vhost_user *vu, unsigned ring);
/* Hangs up without `gone`. No callback follows but @closed, when all handles are
 * gone; then it is freed. */
void vhost_user_close(struct vhost_user *vu, void (*closed)(void *arg), void *arg);
