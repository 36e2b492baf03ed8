/* edit.h - change values in the text of a lima.yaml and keep its comments
 *
 * What the command line asks for (--cpus 2, --set '.ssh.localPort = 2222') is
 * done on the text, not on a tree that is written out again: only the lines
 * concerned change, so the user's comments, order and style survive into the
 * instance's lima.yaml. Each call reads the text anew, changes it in memory and
 * reads the result; a change that would break it is refused and @text stays as
 * it was.
 *
 * A path is written like in yq: "cpus", ".ssh.localPort", "mounts[0].writable",
 * ".env.\"odd key\"". A value is YAML on one line: 4, true, "text", 4GiB,
 * [a, b], {guestPort: 80, hostPort: 8080}. edit_quote() makes a value out of
 * any text.
 */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/error.h"

/* Sets the value, adding it and the maps around it where they are missing.
 * -ENOENT when a list has no such item; -EINVAL when something in the way is
 * not a map. */
int edit_set(struct buf *text, const char *path, const char *value, struct error *err);

enum edit_place {
	EDIT_LAST,
	EDIT_FIRST,
	EDIT_UNIQUE,	/* last, unless an equal item is there */
};
/* Adds one item to a list, which is made if there is none. */
int edit_add(struct buf *text, const char *path, enum edit_place place, const char *value,
	     struct error *err);

/* Removes a key or an item; nothing there is success. */
int edit_delete(struct buf *text, const char *path, struct error *err);

/* The part of yq's language that --set takes: `PATH = VALUE`, `PATH += LIST`
 * and `del(PATH)`, joined by `|`. Anything else is an error that says so. */
int edit_expression(struct buf *text, const char *expression, struct error *err);

/* The YAML of a value in the text, on one line (`[a, b]`); text that is a
 * single string comes without quotes. *@ret NULL when there is none. */
int edit_get(const struct buf *text, const char *path, char **ret, struct error *err);

/* Text as a value: plain where that is safe, in double quotes otherwise; caller
 * frees. */
char *edit_quote(const char *s);
