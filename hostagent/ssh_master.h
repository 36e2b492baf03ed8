/* ssh_master.h - the one ssh connection that sessions share
 *
 * A foreground `ssh -M -N` that we watch: its LocalCommand tells when it is
 * connected (ssh_config(5): run after connecting; the control socket listens by
 * then), its exit tells that it is lost. That one connection is also the probe
 * whether ssh works at all: nothing is run in the guest for it. Sessions of
 * `limactl shell` and probes then cost no handshake.
 *
 * A master that somebody else left behind (a shell after ours was lost, a host
 * agent that was killed) is used as it is. That one has no exit that we would see: its
 * socket is looked at every 5 s, and when it ended that is told as for one of ours.
 */
#pragma once

#include <stdbool.h>

#include "hostagent/ssh.h"
#include "lib/base/error.h"
#include "lib/base/loop.h"

struct ssh_master;

struct ssh_master_callbacks {
	void (*up)(void *arg);
	/* It was up and is no more. ssh_master_ensure() to have a new one. */
	void (*lost)(void *arg, const struct error *why);
	void *arg;
};

/* @t is borrowed for the master's life. Does nothing before ensure. */
struct ssh_master *ssh_master_new(struct loop *loop, const struct ssh_target *t,
				  const struct ssh_master_callbacks *cb);

/* Wants it up: tries, with back-off, until it is or ssh_master_rest(). When it is
 * up already: looks soon whether a master that is not our child is still there. */
void ssh_master_ensure(struct ssh_master *m);
/* The guest it led to is gone (it was reset): ends one that is up at once, which is
 * then told as lost; nobody waits for keep-alives that nobody answers. */
void ssh_master_drop(struct ssh_master *m);
/* Stops trying; one that is up stays. */
void ssh_master_rest(struct ssh_master *m);
bool ssh_master_is_up(const struct ssh_master *m);
/* Why the last try failed; code 0 when none did. */
const struct error *ssh_master_last_error(const struct ssh_master *m);

/* Ends the connection and everything on it, removes the socket, then runs
 * @closed (may be NULL) and frees. */
void ssh_master_close(struct ssh_master *m, void (*closed)(void *arg), void *arg);
