/* schema.h - the key table: everything that is known about a key of lima.yaml
 *
 * One row a key. A row says what type the value has, what it is when nobody
 * gives it, how default.yaml, lima.yaml and override.yaml combine, where in
 * struct config it goes, and what else must hold. The stages of config_load()
 * (typecheck, merge, expand, fill, validate, decode) are loops over these rows
 * and know no key by name; what concerns several keys at once is a function of
 * the object they sit in (`fill`, `check`).
 *
 * Keys that Lima knows and this version does not act on are rows as well, with
 * KEY_NO_EFFECT: they are type-checked and appear in the JSON, and setting one
 * to something else than its default warns. A row without a field is kept in
 * the JSON only.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lib/config/config.h"
#include "lib/config/expr.h"
#include "lib/config/node.h"
#include "lib/config/problem.h"

/* What one config_load() works with. */
struct resolve {
	const struct config_context *ctx;
	struct node_pool *pool;
	struct problem_sink problems;
	struct node *root;		/* after merge */
	const struct node *own;		/* lima.yaml alone */
	struct strv used_params;	/* names of own params that some text mentions */
	struct expr_vars guest, host, message;
};

enum schema_type {		/* node kind after typecheck → field in the struct */
	TYPE_BOOL,		/* BOOL → bool */
	TYPE_INT,		/* INT, min..max → unsigned */
	TYPE_PORT,		/* INT, 1..65535 (min 0: also 0) → uint16_t */
	TYPE_PORT_OR_AUTO,	/* INT as PORT, or STRING "auto" → bool: it is "auto" */
	TYPE_PORT_RANGE,	/* LIST of two INT → uint16_t[2] */
	TYPE_SIZE,		/* STRING with num = bytes → uint64_t */
	TYPE_STRING,		/* STRING → char *, NULL when not given */
	TYPE_ENUM,		/* STRING, one of words → int, index in words */
	TYPE_WORD,		/* STRING, one of words → char * */
	TYPE_IP,		/* STRING → struct in6_addr */
	TYPE_MAP,		/* MAP of STRING → struct config_map */
	TYPE_STRINGS,		/* LIST of STRING → struct strv */
	TYPE_OBJECT,		/* MAP by object's rows → fields of the same struct */
	TYPE_LIST,		/* LIST of objects → array and count */
	TYPE_ANY,		/* whatever it is; JSON only */
	TYPE_COUNT
};

enum {				/* schema_key.flags */
	KEY_REQUIRED	= 1 << 0,
	KEY_EMPTY_UNSET	= 1 << 1,	/* "" and 0 mean: not given, as in Lima */
	KEY_DEFAULT_UNSET = 1 << 6,	/* so does the word `default` */
	KEY_GUEST_EXPR	= 1 << 2,	/* {{…}} with guest variables */
	KEY_HOST_EXPR	= 1 << 3,	/* {{…}} with host variables */
	KEY_NO_EFFECT	= 1 << 4,	/* known to Lima, this version does not act on it */
	KEY_OBSOLETE	= 1 << 5,	/* Lima calls it deprecated; `instead` says what to use */
};

enum merge_rule {		/* reference/lima-yaml.md §4; o override, y own, d default */
	MERGE_BY_TYPE,		/* scalar: first of o, y, d. list: o + y + d. map, object: by key */
	MERGE_WHOLE,		/* first of o, y, d that has it, lists and maps included */
	MERGE_NONEMPTY,		/* as WHOLE, an empty list does not count */
	MERGE_SHALLOW,		/* object: by key, each key as WHOLE */
	MERGE_KEYED,		/* list: d + y + o; later wins in items of equal identity */
	MERGE_UNION,		/* list: d + y + o without repeats */
	MERGE_NEWEST,		/* the highest version */
};

struct schema_object;

struct schema_key {
	const char *name;
	enum schema_type type;
	unsigned flags;
	enum merge_rule merge;
	const char *def;		/* builtin default, YAML; NULL: none or by fill */
	const char *const *words;	/* ENUM, WORD; NULL-terminated */
	int64_t min, max;		/* INT; max 0: UINT32_MAX */
	const struct schema_object *object;	/* OBJECT, LIST */
	const char *short_key;		/* LIST, OBJECT: a bare text X stands for {short_key: X} */
	size_t field;			/* offset in the struct + 1; 0: none */
	size_t count;			/* LIST: offset of the count + 1 */
	/* NULL, or what is wrong with the (expanded) value: "is not …". */
	const char *(*check)(const struct node *n);
	const char *instead;		/* OBSOLETE: use this; NO_EFFECT: why, may be NULL */
};

struct schema_object {
	const struct schema_key *keys;
	size_t n_keys;
	size_t size;			/* of the struct of a list item */
	/* Sets in @obj what follows from other keys; runs after the rows' defaults. */
	void (*fill)(struct resolve *r, struct node *obj);
	/* Rules that concern several keys; runs after the rows' own checks. */
	void (*check)(struct resolve *r, const struct node *obj);
	/* KEYED: what makes two items the same; NULL: nothing does. */
	const char *(*identity)(struct resolve *r, const struct node *item);
	/* True for an item of a list that has no place in struct config. */
	bool (*skip)(const struct node *item);
};

extern const struct schema_object schema_root;

const struct schema_key *schema_find(const struct schema_object *obj, const char *name);

/* Types and shorthands of one file, in place: afterwards every node has the
 * kind its row promises, or is NODE_BAD and was reported. Unknown keys warn. */
void schema_typecheck(struct resolve *r, struct node *root);

/* One tree out of three; each may be NULL. */
struct node *schema_merge(struct resolve *r, const struct node *dflt, const struct node *own,
			  const struct node *over);
/* Items of KEYED lists with equal identity become one. After schema_expand. */
void schema_collapse(struct resolve *r);

/* The user's account, which the {{…}} of other values need. Before expand. */
void schema_fill_user(struct resolve *r);
/* Which params are mentioned; before {{…}} is replaced, so before expand. */
void schema_note_used_params(struct resolve *r);
/* {{…}} in every value that may have it. */
void schema_expand(struct resolve *r);
/* The same for `message`, which may name any value. After fill. */
void schema_expand_message(struct resolve *r);
/* Builtin defaults, rows first, then each object's fill. */
void schema_fill(struct resolve *r);
/* `plain: true` drops what needs a guest agent, reference/lima-yaml.md §4. */
void schema_apply_plain(struct resolve *r);

void schema_validate(struct resolve *r);

/* Only after validate found no error. schema_release frees what it allocated. */
void schema_decode(const struct node *root, struct config *c);
void schema_release(struct config *c);
/* One item of a list by itself: @ret has the object's size and is zeroed. */
void schema_decode_one(const struct schema_object *obj, const struct node *map, void *ret);
void schema_release_one(const struct schema_object *obj, void *item);

/* The tree as JSON. */
void schema_json(const struct node *root, struct buf *ret);

/* --- rules of single objects, by the schema table -------------------------------- */

void fill_root(struct resolve *r, struct node *root);
void fill_image(struct resolve *r, struct node *image);
void fill_user(struct resolve *r, struct node *user);
void fill_mount(struct resolve *r, struct node *mount);
void fill_port_forward(struct resolve *r, struct node *rule);
void fill_provision(struct resolve *r, struct node *p);
void fill_probe(struct resolve *r, struct node *probe);
void fill_network(struct resolve *r, struct node *network);

void check_root(struct resolve *r, const struct node *root);
void check_image(struct resolve *r, const struct node *image);
void check_user(struct resolve *r, const struct node *user);
void check_mount(struct resolve *r, const struct node *mount);
void check_port_forward(struct resolve *r, const struct node *rule);
void check_provision(struct resolve *r, const struct node *p);
void check_probe(struct resolve *r, const struct node *probe);
void check_disk(struct resolve *r, const struct node *disk);
void check_network(struct resolve *r, const struct node *network);
void check_params_used(struct resolve *r, const struct node *root);

const char *identity_mount(struct resolve *r, const struct node *mount);
const char *identity_network(struct resolve *r, const struct node *network);
bool skip_provision(const struct node *p);

const char *check_digest(const struct node *n);
const char *check_location(const struct node *n);
const char *check_semver(const struct node *n);
const char *check_octal(const struct node *n);
const char *check_absolute(const struct node *n);
const char *check_guest_path(const struct node *n);	/* may stand in passwd(5), $PATH */
const char *check_one_line(const struct node *n);
const char *check_ssh_port(const struct node *n);
const char *check_env(const struct node *map);
const char *check_param(const struct node *map);
const char *check_ips(const struct node *list);
