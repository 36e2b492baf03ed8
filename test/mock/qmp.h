/* qmp.h - plays QEMU on the other end of a socket pair, in the same loop
 *
 * Greets when told, answers commands out of a small table or as the test says,
 * sends events. Every command it receives and every event it sends is checked
 * against qmp-schema.json, so a misspelt command or argument fails here and not
 * at a user's. The schema is what `query-qmp-schema` of QEMU 7.2 returns, cut
 * down to what drivers/qemu uses and what that refers to; qmp_test compares it
 * with the QEMU at hand.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "lib/base/loop.h"
#include "lib/base/strv.h"

struct mock_qmp {
	uv_pipe_t pipe;
	struct loop *loop;
	struct strv commands;	/* names, in the order of arrival */
	struct strv arguments;	/* of each, as compact JSON with sorted keys, "" none */
	json_t *schema;
	char in[65536];
	size_t len;
	/* What to do with the next commands after qmp_capabilities. */
	bool silent;		/* receive, do not answer */
	const char *error;	/* answer with this error text */
	json_t *answers;	/* command → its reply's "return", instead of the table's; a
				 * string "!TEXT" is an error. May be NULL */
	json_t *last_id;	/* of the last command */
	bool closed;		/* the other side closed */
};

/* *ret_fd: the client's end. @schema_path: qmp-schema.json. */
struct mock_qmp *mock_qmp_new(struct loop *loop, const char *schema_path, int *ret_fd);
/* Takes @fd, a client that connected. */
struct mock_qmp *mock_qmp_on(struct loop *loop, const char *schema_path, int fd);
void mock_qmp_greet(struct mock_qmp *m);
void mock_qmp_send(struct mock_qmp *m, const char *text);	/* raw, as it is */
void mock_qmp_event(struct mock_qmp *m, const char *name, json_t *data);	/* takes @data */
void mock_qmp_reply(struct mock_qmp *m, json_t *id, json_t *ret);	/* takes @ret */
/* Adds to m->answers: @json is text. */
void mock_qmp_answer(struct mock_qmp *m, const char *command, const char *json);
void mock_qmp_close(struct mock_qmp *m);	/* as QEMU dying does; frees when closed */

/* NULL, or what is wrong with sending that; static. */
const char *mock_qmp_check(const json_t *schema, const char *meta_type, const char *name,
			   json_t *args);
