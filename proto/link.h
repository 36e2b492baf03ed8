/* link.h - a fresh session on a byte channel that has a memory
 *
 * The virtio-serial port is one channel for the life of the VM, but host agents
 * and guest agents come and go. Bytes of an earlier session are the rule on a
 * new connection (29-295 KiB after a kill during a download; prototypes: grpc,
 * "Behaviour"), a fast reconnect is not noticed in the guest at all, and QEMU
 * throws bytes away while the guest's port is closed. HTTP/2 survives none of it.
 *
 *	host  → guest	SYN = secret[16] nonce[16]
 *	guest → host	ACK = ~secret[16] nonce[16]
 *
 * The host throws away all input up to the ACK of the last SYN it sent; each
 * SYN has a new nonce, and is repeated at growing intervals until the ACK comes,
 * so neither a lost SYN nor a lost ACK matters. The guest looks for SYN in all
 * it reads, at all times: one means that a new host is there, so the transport
 * of the old one is dropped with all its bytes, ACK is written, and a new
 * transport begins. After the ACK both directions are the new session's, byte
 * for byte.
 *
 * The secret is per VM (from the seed), so that nobody who merely sends data
 * through a tunnel can make up a SYN. It is no login: who can read the port can
 * read the secret.
 *
 * Only the serial channel works so; sockets speak plain HTTP/2, with Lima's
 * agents too. link_host.h and link_guest.h are the two ends.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	LINK_MAGIC_SIZE = 16,
	LINK_NONCE_SIZE = 16,
	LINK_FRAME_SIZE = LINK_MAGIC_SIZE + LINK_NONCE_SIZE,
};

/* The magic of an ACK for the secret of a SYN. */
void link_ack_magic(const uint8_t secret[LINK_MAGIC_SIZE], uint8_t ret[LINK_MAGIC_SIZE]);

/* Looks for a whole frame that starts with @magic. True: it begins at *@at. If
 * there is none, *@at is where a frame may begin of which the rest has not been
 * read: the last len - *@at bytes (fewer than LINK_FRAME_SIZE, often none). */
bool link_find(const uint8_t magic[LINK_MAGIC_SIZE], const uint8_t *data, size_t len, size_t *at);
