/* ssh.h - how we speak to the guest's sshd: options, ssh.config, keys
 *
 * One option list for everybody: the host agent's master and probes, `limactl
 * shell`, and the ssh.config that users hand to their own tools. Facts and the
 * list it grew from: reference/hostagent.md §11. Ours differs where that list
 * trusts too much or waits too long:
 *
 *  - the guest's host key is pinned: INSTDIR/ssh_known_hosts is written with the
 *    seed that installs the key, and looked up by name (HostKeyAlias), so the
 *    port may change. Without that file (an instance made by Lima) the first
 *    key seen is the one from then on;
 *  - ConnectTimeout and ServerAlive bound every wait;
 *  - no GSSAPI option: only publickey is offered anyway, and clients built
 *    without GSSAPI complain about the name.
 *
 * Making argv is pure; a `struct ssh_target` is filled once and read only.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/error.h"
#include "lib/base/strv.h"
#include "lib/config/config.h"

struct ssh_target {
	char *instance;			/* name */
	char *dir;			/* instance directory */
	char *user;
	char *host;			/* "127.0.0.1" */
	uint16_t port;
	struct strv identities;		/* private key files, ours first */
	bool pinned;			/* ssh_known_hosts is there */
	bool forward_agent, forward_x11, forward_x11_trusted;
	bool aes;			/* this CPU has AES instructions */
};

/* Looks at the disk for keys and ssh_known_hosts, otherwise pure. */
void ssh_target_init(struct ssh_target *t, const char *lima_home, const char *instance,
		     const char *instance_dir, const struct config *config, uint16_t port);
void ssh_target_done(struct ssh_target *t);

/* The ssh program: $SSH (may carry arguments) or `ssh` from PATH, appended to
 * @argv. The error says how to get one. */
int ssh_add_program(struct strv *argv, struct error *err);

enum ssh_mux {
	SSH_MUX,	/* use the master, become one when there is none */
	SSH_NO_MUX,	/* a connection of its own */
	SSH_MUX_MASTER,	/* be the master, in the foreground */
};

/* -F /dev/null and all -o KEY=VALUE. */
void ssh_add_options(struct strv *argv, const struct ssh_target *t, enum ssh_mux mux);
/* -p PORT HOST: what follows is the command. */
void ssh_add_destination(struct strv *argv, const struct ssh_target *t);
/* A request to the master: `-O @command [@more…] -p PORT HOST`, @more NULL-terminated
 * or NULL. */
void ssh_add_control(struct strv *argv, const struct ssh_target *t, const char *command,
		     const char *const *more);

/* The text of INSTDIR/ssh.config; caller frees. -EINVAL when a path or a name
 * has a line break in it. */
int ssh_config_text(const struct ssh_target *t, char **ret, struct error *err);
/* Writes it, 0600. */
int ssh_config_write(const struct ssh_target *t, struct error *err);
/* The `Port` in INSTDIR/ssh.config, 0 when there is none. */
uint16_t ssh_config_port(const char *instance_dir);

/* Our own key pair LIMA_HOME/_config/user, made when missing (ed25519, comment
 * "lima"). Blocks for some ms; safe against others doing the same. */
int ssh_ensure_user_key(const char *lima_home, struct error *err);
/* Lines for the guest's authorized_keys: our public key, and those of
 * ~/.ssh/NAME.pub when the config says so. Needs ssh_ensure_user_key(). */
int ssh_public_keys(const char *lima_home, const struct config *config, struct strv *ret,
		    struct error *err);

/* A free TCP port on 127.0.0.1, @wanted when it is free (0: no wish). The port
 * is held by *ret_fd, a bound socket that does not listen: nobody is given it
 * by bind(0) or connect(), while a program that sets SO_REUSEADDR before bind, as
 * QEMU's hostfwd does, can take it (socket(7), ip(7)). Close it after that.
 * With @must: -EADDRINUSE when @wanted is taken. */
int ssh_hold_port(uint16_t wanted, bool must, uint16_t *ret_port, int *ret_fd, struct error *err);
