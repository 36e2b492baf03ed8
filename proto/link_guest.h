/* link_guest.h - the guest's end of the link (link.h): port ↔ socket pair
 *
 * gRPC needs a socket, the virtio-serial port is a character device. So each
 * session is a socket pair: one end goes to gRPC, and this pump moves bytes
 * between the other end and the port, on the loop, without threads.
 *
 * The port is watched edge-triggered (an epoll of its own, which the loop
 * watches): while no host is connected it reports POLLHUP all the time, and a
 * level-triggered watch would spin; the edge comes when a host connects. It is
 * opened non-blocking, because the driver's blocking write waits in a busy loop
 * (Linux drivers/char/virtio_console.c, __send_to_port).
 *
 * Holds one 64 KiB buffer per direction and reads no more while it is not
 * passed on. A port that is not there yet, or goes away, is tried again every
 * 2 s and, as time goes by, every 30 s.
 *
 * The host must never believe in a session that is over here: when one ends other
 * than by the host's SYN or its hanging up, the port is closed for a moment, of
 * which QEMU tells it (VSERPORT_CHANGE).
 */
#pragma once

#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/loop.h"

struct link_guest;

/* A host began a session; the callee owns @fd, one end of a socket pair. The
 * session before is at its end already. */
typedef void (*link_session_fn)(void *arg, int fd);

/* @device: opened here, now or later; an error only if it can never work. */
int link_guest_open(struct loop *loop, const char *device, const uint8_t *secret,
		    link_session_fn session, void *arg, struct link_guest **ret,
		    struct error *err);
/* As above on a descriptor, which is taken, also on failure (tests). */
int link_guest_new(struct loop *loop, int fd, const uint8_t *secret, link_session_fn session,
		   void *arg, struct link_guest **ret, struct error *err);
/* How long gRPC may take nothing of a session; 10 s unless set (tests). */
void link_guest_set_patience(struct link_guest *l, unsigned ms);
/* Passes on at once what gRPC wrote to the session, which the loop would do a turn
 * later: for who just sent what somebody waits for. */
void link_guest_flush(struct link_guest *l);
/* Passes on what the session's socket still has, for half a second at most, then
 * closes. @closed runs when all is freed, never before this returned. */
void link_guest_close(struct link_guest *l, void (*closed)(void *arg), void *arg);
