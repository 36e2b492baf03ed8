/* port.h - what the verbs below `limactl port` share */
#pragma once

#include <jansson.h>

#include "cmd/limactl/args.h"
#include "lib/store/instance.h"

/* The instance, which must have a host agent, and its ha.sock. */
int port_open(const char *name, char **ret_socket, struct instance **ret, struct error *err);
/* GET @path, an array; the caller releases. */
int port_get(const char *socket, const char *path, json_t **ret, struct error *err);
/* The table and what live rules have no row in it. */
int port_get_rows(const char *socket, json_t **ret, struct error *err);

static inline void scoped_json_fn(json_t **j)
{
	json_decref(*j);
}
#define scoped_json __attribute__((cleanup(scoped_json_fn)))

extern const struct verb verb_port_list, verb_port_add, verb_port_remove;
