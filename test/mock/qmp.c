#include "test/mock/qmp.h"

#include <assert.h>
#include <stdio.h>
#include <sys/socket.h>

#include "lib/base/mem.h"

static const json_t *find(const json_t *schema, const char *name)
{
	size_t i;
	json_t *e;

	json_array_foreach(schema, i, e)
		if (streq(json_string_value(json_object_get(e, "name")), name))
			return e;
	return NULL;
}

static const json_t *member(const json_t *type, const char *key)
{
	size_t i;
	json_t *m;

	json_array_foreach(json_object_get(type, "members"), i, m)
		if (streq(json_string_value(json_object_get(m, "name")), key))
			return m;
	return NULL;
}

const char *mock_qmp_check(const json_t *schema, const char *meta_type, const char *name,
			   json_t *args)
{
	static char text[256];
	const json_t *e = find(schema, name), *type;
	const char *key;
	json_t *value, *m;
	size_t i;

	snprintf(text, sizeof(text), "%s `%s` is not in the schema", meta_type, name);
	if (!e || !streq(json_string_value(json_object_get(e, "meta-type")), meta_type))
		return text;
	type = find(schema, json_string_value(json_object_get(e, "arg-type")));
	json_object_foreach(args, key, value) {
		if (streq(name, "device_add"))	/* the device's properties, not told in the schema */
			break;
		snprintf(text, sizeof(text), "`%s` has no member `%s`", name, key);
		if (!member(type, key))
			return text;
	}
	json_array_foreach(json_object_get(type, "members"), i, m) {
		key = json_string_value(json_object_get(m, "name"));
		snprintf(text, sizeof(text), "`%s` needs a `%s`", name, key);
		if (!json_object_get(m, "default") && !json_object_get(args, key))
			return text;
	}
	return NULL;
}

struct line {
	uv_write_t req;
	char *text;
};

static void on_written(uv_write_t *req, int status)
{
	struct line *l = container_of(req, struct line, req);

	free(l->text);
	free(l);
}

void mock_qmp_send(struct mock_qmp *m, const char *text)
{
	struct line *l = xnew(struct line);
	uv_buf_t b;

	l->text = xstrdup(text);
	b = uv_buf_init(l->text, (unsigned)strlen(l->text));
	if (uv_write(&l->req, (uv_stream_t *)&m->pipe, &b, 1, on_written) < 0)
		on_written(&l->req, -1);
}

static void send_json(struct mock_qmp *m, json_t *msg)
{
	scoped_free char *text = json_dumps(msg, 0);
	scoped_free char *line = xasprintf("%s\r\n", text);	/* as QEMU ends its lines */

	mock_qmp_send(m, line);
	json_decref(msg);
}

void mock_qmp_greet(struct mock_qmp *m)
{
	send_json(m, json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[s]}}", "QMP", "version", "qemu",
			       "major", 7, "minor", 2, "micro", 22, "package", "mock",
			       "capabilities", "oob"));
}

void mock_qmp_event(struct mock_qmp *m, const char *name, json_t *data)
{
	const char *wrong = mock_qmp_check(m->schema, "event", name, data);

	if (wrong) {
		fprintf(stderr, "mock QEMU: %s\n", wrong);
		abort();
	}
	send_json(m, json_pack("{s:s, s:o*, s:{s:i, s:i}}", "event", name, "data", data,
			       "timestamp", "seconds", 1, "microseconds", 0));
}

void mock_qmp_reply(struct mock_qmp *m, json_t *id, json_t *ret)
{
	send_json(m, json_pack("{s:o, s:O*}", "return", ret, "id", id));
}

static json_t *default_reply(const char *command)
{
	if (streq(command, "query-status"))
		return json_pack("{s:s, s:b, s:b}", "status", "running", "singlestep", 0, "running",
				 1);
	if (streq(command, "query-kvm"))
		return json_pack("{s:b, s:b}", "enabled", 0, "present", 1);
	return json_object();
}

static void send_error(struct mock_qmp *m, const char *class, const char *text)
{
	send_json(m, json_pack("{s:{s:s, s:s}, s:O*}", "error", "class", class, "desc", text, "id",
			       m->last_id));
}

void mock_qmp_answer(struct mock_qmp *m, const char *command, const char *json)
{
	json_t *value = json_loads(json, JSON_DECODE_ANY, NULL);

	assert(value);
	if (!m->answers)
		m->answers = json_object();
	json_object_set_new(m->answers, command, value);
}

static void answer(struct mock_qmp *m, const char *command)
{
	json_t *ret = json_object_get(m->answers, command);
	const char *text = json_string_value(ret);

	if (text && *text == '!')
		send_error(m, "GenericError", text + 1);
	else
		mock_qmp_reply(m, m->last_id, ret ? json_incref(ret) : default_reply(command));
}

static void on_command(struct mock_qmp *m, json_t *msg)
{
	const char *name = json_string_value(json_object_get(msg, "execute"));
	const char *wrong;

	assert(name);
	strv_add(&m->commands, name);
	scoped_free char *args = json_dumps(json_object_get(msg, "arguments"),
					    JSON_COMPACT | JSON_SORT_KEYS);
	strv_add(&m->arguments, args ? args : "");
	json_decref(m->last_id);
	m->last_id = json_incref(json_object_get(msg, "id"));
	wrong = mock_qmp_check(m->schema, "command", name, json_object_get(msg, "arguments"));
	if (wrong)
		send_error(m, "CommandNotFound", wrong);
	else if (streq(name, "qmp_capabilities") || (!m->silent && !m->error))
		answer(m, name);
	else if (m->error)
		send_error(m, "GenericError", m->error);
}

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
	struct mock_qmp *m = h->data;

	assert(m->len < sizeof(m->in));
	*ret = uv_buf_init(m->in + m->len, (unsigned)(sizeof(m->in) - m->len));
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b)
{
	struct mock_qmp *m = s->data;
	char *nl;

	if (n < 0) {
		m->closed = true;
		uv_read_stop(s);
		return;
	}
	m->len += (size_t)n;
	while ((nl = memchr(m->in, '\n', m->len))) {
		size_t len = (size_t)(nl - m->in) + 1;
		json_t *msg = json_loadb(m->in, len, 0, NULL);

		assert(msg);
		memmove(m->in, m->in + len, m->len - len);
		m->len -= len;
		on_command(m, msg);
		json_decref(msg);
	}
}

struct mock_qmp *mock_qmp_on(struct loop *loop, const char *schema_path, int fd)
{
	struct mock_qmp *m = xnew(struct mock_qmp);
	int rc;

	m->loop = loop;
	m->schema = json_load_file(schema_path, 0, NULL);
	assert(m->schema);
	uv_pipe_init(&loop->uv, &m->pipe, 0);
	m->pipe.data = m;
	rc = uv_pipe_open(&m->pipe, fd);
	assert(rc == 0);
	uv_read_start((uv_stream_t *)&m->pipe, on_alloc, on_read);
	return m;
}

struct mock_qmp *mock_qmp_new(struct loop *loop, const char *schema_path, int *ret_fd)
{
	int fds[2], rc = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds);

	assert(rc == 0);
	*ret_fd = fds[1];
	return mock_qmp_on(loop, schema_path, fds[0]);
}

static void on_closed(uv_handle_t *h)
{
	struct mock_qmp *m = h->data;

	strv_done(&m->commands);
	strv_done(&m->arguments);
	json_decref(m->answers);
	json_decref(m->schema);
	json_decref(m->last_id);
	free(m);
}

void mock_qmp_close(struct mock_qmp *m)
{
	uv_close((uv_handle_t *)&m->pipe, on_closed);
}
