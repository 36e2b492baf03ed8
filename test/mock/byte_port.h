/* byte_port.h - plays QEMU's virtio-serial port: a byte channel with a memory
 *
 * The guest's end is one descriptor for good, a socket or a pseudo-terminal; the
 * host's end is a new socket pair per connection. A thread moves the bytes. What
 * one side wrote before the other was there is delivered later, as QEMU and the
 * kernel's buffers do.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

struct byte_port;

struct byte_port *byte_port_new(bool pty);
void byte_port_free(struct byte_port *p);
/* The guest's descriptor, for the first or the next agent; the caller owns it. */
int byte_port_guest(struct byte_port *p);
/* A host connects, in place of the one before; the caller owns the descriptor. */
int byte_port_connect(struct byte_port *p);
/* Bytes that lie in the channel already. */
void byte_port_stale_to_host(struct byte_port *p, const void *data, size_t len);
void byte_port_stale_to_guest(struct byte_port *p, const void *data, size_t len);
/* From now on what the host writes is thrown away (the guest's port is closed). */
void byte_port_deaf(struct byte_port *p, bool deaf);
