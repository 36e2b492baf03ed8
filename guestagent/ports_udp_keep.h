/* ports_udp_keep.h - what an agent that ended knew of UDP sockets
 *
 * The rule (ports_udp.h) goes by what sockets did: a server that is connected to its
 * client was not always, and only BPF saw who chose a port. A dump shows none of it,
 * so an agent that comes after another one, which was killed or replaced, would lose
 * `nc -lu` and OpenVPN, let WireGuard wait for 5 s, and take avahi's idle socket for a
 * server. One small file, in a directory in memory (/run), says it:
 *
 *	lima-guestagent udp 1 BOOT-ID net:[INODE] cookie
 *	2f1 server 0.0.0.0 5000
 *	3a0 client 0.0.0.0 41234
 *
 * Sockets are named by their cookie, which never comes twice in a boot, so what is gone
 * does no harm; by inode where /proc lists them, in a file of their own (".inode"), since
 * /proc may have to do for a while only and must not replace what is known by cookie.
 * The file is written only when there is none, or a socket is not in it that should be,
 * KEEP_SOON_MS later and once every KEEP_EVERY_MS, as a whole, and takes 0.1 ms. A file
 * of another boot or network namespace, or one that is damaged, is ignored.
 *
 * Clients are in it when they live long enough to be taken for servers by age.
 */
#pragma once

#include "guestagent/ports_udp.h"
#include "lib/base/loop.h"

enum {
	KEEP_SOON_MS = 10,
	KEEP_EVERY_MS = 1000,
	KEEP_RETRY_MS = 30 * 1000,	/* after a write that failed */
	KEEP_SOCKETS_MAX = 1024,	/* servers first; the rest is judged anew */
};

struct udp_keep;

/* @servers: whose knowledge it is, until closed. */
struct udp_keep *udp_keep_new(struct loop *loop, const char *path, struct udp_servers *servers);
/* Tells @servers, before they are judged first, what the file says. */
void udp_keep_load(struct udp_keep *k, bool by_inode);
/* There was a file that counts, or one of the other kind: another agent ran before, in this
 * boot. */
bool udp_keep_found(const struct udp_keep *k);
/* After every judgement: has it to be written? */
void udp_keep_note(struct udp_keep *k);

/* Writes what waits for it; @closed runs when all is freed. */
void udp_keep_close(struct udp_keep *k, void (*closed)(void *arg), void *arg);
