#include "hostagent/control.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hostagent/http.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	CLIENTS_MAX = 64,
	BACKLOG = 32,
	IDLE_MS = 10000,
	STALL_MS = 30000,
	QUEUE_MAX_BYTES = 512 * 1024,	/* of events, for a reader that does not read */
	BEHIND_BYTES = 64 * 1024,	/* in the queue: no more lines of a stream that can skip */
	REQUEST_MAX_BYTES = HTTP_HEAD_MAX_BYTES + HTTP_BODY_MAX_BYTES,
	READ_BYTES = 8192,
};

struct client {		/* refs: pipe, timer, writes under way, an answer to come */
	struct control *control;
	uv_pipe_t pipe;
	uv_timer_t idle;	/* until a request is complete; of a stream, until it is read */
	struct buf in;		/* at most REQUEST_MAX_BYTES */
	bool continued;		/* "100 Continue" is said for this request */
	size_t queued_bytes;
	const struct control_path *streaming;	/* NULL: not */
	unsigned subscription;
	bool chunked, last;	/* last: hang up when all is written */
	bool waiting;		/* for control_answer(); later requests stay in `in` */
	bool asking;		/* the task's function runs, and may answer at once */
	bool closing;
	unsigned refs;
	struct client *next;
};

struct control {		/* refs: pipe, clients, and until close() the owner */
	struct loop *loop;
	struct control_options o;
	char *path;
	uv_pipe_t pipe;
	struct client *clients;
	unsigned n_clients;
	bool closing;
	unsigned refs;
	void (*closed)(void *arg);
	void *closed_arg;
};

struct control_reply {
	struct client *client;
	struct http_request request;
};

struct write {
	uv_write_t req;
	struct client *client;
	struct buf data;
};

static void control_unref(struct control *c)
{
	void (*closed)(void *arg) = c->closed;
	void *arg = c->closed_arg;

	if (--c->refs)
		return;
	free(c->path);
	free(c);
	if (closed)
		closed(arg);
}

/* --- one client ---------------------------------------------------------- */

static void client_unref(struct client *cl)
{
	struct control *c = cl->control;

	if (--cl->refs)
		return;
	for (struct client **p = &c->clients; *p; p = &(*p)->next) {
		if (*p == cl) {
			*p = cl->next;
			break;
		}
	}
	c->n_clients--;
	buf_done(&cl->in);
	free(cl);
	control_unref(c);
}

static void on_client_closed(uv_handle_t *h)
{
	client_unref(h->data);
}

static void unsubscribe(struct client *cl)
{
	const struct control_options *o = &cl->control->o;

	if (cl->subscription && cl->streaming->stream)
		cl->streaming->stream->unsubscribe(o->arg, cl->subscription);
	else if (cl->subscription)
		events_unsubscribe(o->events, cl->subscription);
	cl->subscription = 0;
}

static void client_close(struct client *cl)
{
	if (cl->closing)
		return;
	cl->closing = true;
	unsubscribe(cl);
	uv_close((uv_handle_t *)&cl->pipe, on_client_closed);
	uv_close((uv_handle_t *)&cl->idle, on_client_closed);
}

static void on_stalled(uv_timer_t *t)
{
	log_debug("control: a reader does not read, hanging up");
	client_close(t->data);
}

/* A stream waits for nobody: who takes nothing for a while goes. */
static void watch_reader(struct client *cl)
{
	unsigned ms = cl->control->o.stall_timeout_ms;

	if (!cl->streaming || cl->closing)
		return;
	if (cl->queued_bytes)
		uv_timer_start(&cl->idle, on_stalled, ms ? ms : STALL_MS, 0);
	else
		uv_timer_stop(&cl->idle);
}

static void on_written(uv_write_t *req, int status)
{
	struct write *w = container_of(req, struct write, req);
	struct client *cl = w->client;

	cl->queued_bytes -= w->data.len;
	buf_done(&w->data);
	free(w);
	if (status < 0 || (cl->last && cl->queued_bytes == 0))
		client_close(cl);
	watch_reader(cl);
	client_unref(cl);
}

/* Takes the content of @b. */
static void client_send(struct client *cl, struct buf *b)
{
	struct write *w = xnew(struct write);
	uv_buf_t out;

	w->client = cl;
	w->data = *b;
	*b = (struct buf){ 0 };
	out = uv_buf_init((char *)w->data.data, (unsigned)w->data.len);
	cl->refs++;
	cl->queued_bytes += w->data.len;
	if (uv_write(&w->req, (uv_stream_t *)&cl->pipe, &out, 1, on_written) < 0) {
		cl->queued_bytes -= w->data.len;
		buf_done(&w->data);
		free(w);
		cl->refs--;	/* the pipe's own reference is still there */
		client_close(cl);
	}
}

static void send_line(struct client *cl, const char *line)
{
	scoped_buf struct buf with_end = { 0 }, out = { 0 };

	buf_addf(&with_end, "%s\n", line);
	http_add_stream_piece(&out, (char *)with_end.data, with_end.len, cl->chunked);
	client_send(cl, &out);
	if (!uv_is_active((uv_handle_t *)&cl->idle))
		watch_reader(cl);
}

/* Each event counts: who cannot keep up loses the stream, not some of them. */
static void send_event(void *arg, const char *line)
{
	struct client *cl = arg;

	if (cl->closing)
		return;
	if (cl->queued_bytes > QUEUE_MAX_BYTES) {
		log_debug("control: an event reader does not keep up, hanging up");
		client_close(cl);
		return;
	}
	send_line(cl, line);
}

static bool offer_line(void *arg, const char *line)
{
	struct client *cl = arg;

	if (cl->closing || uv_stream_get_write_queue_size((uv_stream_t *)&cl->pipe) > BEHIND_BYTES)
		return false;
	send_line(cl, line);
	return true;
}

static void start_stream(struct client *cl, const struct control_path *p, const struct http_request *r)
{
	const struct control_options *o = &cl->control->o;
	scoped_buf struct buf out = { 0 };

	uv_timer_stop(&cl->idle);
	cl->streaming = p;
	cl->chunked = !r->is_http10;
	http_add_stream_head(&out, "application/x-ndjson", cl->chunked);
	client_send(cl, &out);
	if (cl->closing)
		return;
	if (p->stream)
		cl->subscription = p->stream->subscribe(o->arg, offer_line, cl);
	else
		cl->subscription = events_subscribe(o->events, send_event, cl);
	if (cl->closing)	/* the first line could not be written */
		unsubscribe(cl);
}

/* Takes @answer. */
static void send_json(struct client *cl, const struct http_request *r, int status, json_t *answer)
{
	scoped_free char *body = json_dumps(answer, JSON_COMPACT | JSON_ENCODE_ANY);
	scoped_buf struct buf out = { 0 };

	assert(body);
	http_add_response(&out, status, "application/json", body, strlen(body), r->keep_alive,
			  streq(r->method, "HEAD"));
	json_decref(answer);
	client_send(cl, &out);
}

static void send_error(struct client *cl, int status, const char *text, bool keep_alive)
{
	scoped_buf struct buf out = { 0 };

	cl->last |= !keep_alive;
	http_add_error(&out, status, NULL, text, keep_alive);
	client_send(cl, &out);
}

static bool has_tasks(const struct control_path *p)
{
	return p->tasks.get || p->tasks.post || p->tasks.del;
}

static bool has_get(const struct control_path *p)
{
	return p->get || p->tasks.get || !has_tasks(p);
}

static void send_not_allowed(struct client *cl, const struct control_path *p, bool keep_alive)
{
	scoped_buf struct buf out = { 0 }, allow = { 0 }, text = { 0 };

	buf_addf(&allow, "%s%s%s", p->get ? ", GET, HEAD" : has_get(p) ? ", GET" : "",
		 p->post || p->tasks.post ? ", POST" : "",
		 p->del || p->tasks.del ? ", DELETE" : "");
	buf_consume(&allow, strlen(", "));
	buf_addf(&text, "%s takes %s", p->path, buf_str(&allow));
	cl->last |= !keep_alive;
	http_add_error(&out, 405, buf_str(&allow), buf_str(&text), keep_alive);
	client_send(cl, &out);
}

static void send_no_path(struct client *cl, bool keep_alive)
{
	const struct control_options *o = &cl->control->o;
	scoped_buf struct buf text = { 0 };

	buf_add_str(&text, "no such path; there are");
	for (size_t i = 0; i < o->n_paths; i++)
		buf_addf(&text, "%s %s", i ? "," : "", o->paths[i].path);
	send_error(cl, 404, buf_str(&text), keep_alive);
}

/* NULL: it is none, and the client was told so. */
static json_t *read_body(struct client *cl, const struct http_request *r, const char *body)
{
	json_error_t why;
	json_t *root = json_loadb(body, r->body_len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
	struct error err = ERROR_NONE;

	if (!root) {
		error_set(&err, -EINVAL, "the body is not JSON: column %d: %s", why.column, why.text);
		send_error(cl, 400, err.msg, r->keep_alive);
	}
	return root;
}

static void change(struct client *cl, const struct http_request *r, control_change_fn fn,
		   const char *body)
{
	struct error err = ERROR_NONE;
	json_t *ret = NULL, *root = read_body(cl, r, body);
	int status;

	if (!root)
		return;
	status = fn(cl->control->o.arg, root, &ret, &err);
	json_decref(root);
	if (status >= 400)
		send_error(cl, status, err.msg, r->keep_alive);
	else
		send_json(cl, r, status, ret);
}

/* The client waits, without a deadline of ours, and hears nothing else until then. */
static void begin_task(struct client *cl, const struct http_request *r, control_task_fn fn,
		       const char *body)
{
	bool has_body = !streq(r->method, "GET");
	json_t *root = has_body ? read_body(cl, r, body) : NULL;
	struct control_reply *reply;

	if (has_body && !root)
		return;
	reply = xnew(struct control_reply);
	*reply = (struct control_reply){ cl, *r };
	cl->waiting = true;
	cl->refs++;
	uv_timer_stop(&cl->idle);
	cl->asking = true;
	fn(cl->control->o.arg, root, reply);
	cl->asking = false;
	json_decref(root);
}

static void take_requests(struct client *cl);

static void restart_idle(struct client *cl);

void control_answer(struct control_reply *reply, int status, json_t *answer,
		    const struct error *err)
{
	struct client *cl = reply->client;
	const struct http_request *r = &reply->request;

	cl->waiting = false;
	if (cl->closing) {
		json_decref(answer);
	} else {
		cl->last = !r->keep_alive;
		restart_idle(cl);
		if (status >= 400)
			send_error(cl, status, err->msg, r->keep_alive);
		else
			send_json(cl, r, status, answer);
		if (!cl->asking)	/* else who asked goes on */
			take_requests(cl);
	}
	free(reply);
	client_unref(cl);
}

static const struct control_path *find_path(const struct control *c, const char *path)
{
	for (size_t i = 0; i < c->o.n_paths; i++)
		if (streq(c->o.paths[i].path, path))
			return &c->o.paths[i];
	return NULL;
}

static void answer(struct client *cl, const struct http_request *r, const char *body)
{
	const struct control_path *p = find_path(cl->control, r->path);
	bool is_get = streq(r->method, "GET"), is_head = streq(r->method, "HEAD");
	bool is_post = streq(r->method, "POST"), is_delete = streq(r->method, "DELETE");
	control_change_fn fn = !p ? NULL : is_post ? p->post : is_delete ? p->del : NULL;
	control_task_fn task = !p ? NULL : is_get ? p->tasks.get : is_post ? p->tasks.post :
			       is_delete ? p->tasks.del : NULL;

	cl->last = !r->keep_alive && !task && !(p && !p->get && is_get);
	if (!p)
		send_no_path(cl, r->keep_alive && !is_head);
	else if (task)
		begin_task(cl, r, task, body);
	else if (fn)
		change(cl, r, fn, body);
	else if (!(is_get && has_get(p)) && !(p->get && is_head))
		send_not_allowed(cl, p, r->keep_alive && !is_head);
	else if (!p->get)
		start_stream(cl, p, r);
	else
		send_json(cl, r, 200, p->get(cl->control->o.arg));
}

static void on_idle(uv_timer_t *t)
{
	struct client *cl = t->data;

	if (cl->last || !cl->in.len) {
		client_close(cl);
		return;
	}
	send_error(cl, 408, "the request took too long", false);
	if (!cl->closing)
		restart_idle(cl);	/* for it to be read */
}

static void restart_idle(struct client *cl)
{
	unsigned ms = cl->control->o.idle_timeout_ms;

	uv_timer_start(&cl->idle, on_idle, ms ? ms : IDLE_MS, 0);
}

static void ask_for_body(struct client *cl, const struct http_request *r)
{
	scoped_buf struct buf out = { 0 };

	if (!r->expects_continue || cl->continued)
		return;
	cl->continued = true;
	http_add_continue(&out);
	client_send(cl, &out);
}

/* All complete requests of what has come. A client that asks without reading
 * answers is bounded too. */
static void take_requests(struct client *cl)
{
	struct http_request r;

	while (cl->in.len && !cl->closing && !cl->last && !cl->streaming && !cl->waiting) {
		int n = http_parse((char *)cl->in.data, cl->in.len, &r);

		if (n == 0)
			return;
		if (n < 0 || cl->queued_bytes > QUEUE_MAX_BYTES) {
			buf_reset(&cl->in);
			send_error(cl, n < 0 ? -n : 503, http_status_text(n < 0 ? -n : 503), false);
			return;
		}
		if (cl->in.len - (size_t)n < r.body_len) {
			ask_for_body(cl, &r);
			return;
		}
		restart_idle(cl);
		cl->continued = false;
		answer(cl, &r, (char *)cl->in.data + n);
		buf_consume(&cl->in, (size_t)n + r.body_len);
	}
}

/* No room left: libuv reports UV_ENOBUFS, and the client goes. */
static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct client *cl = h->data;
	size_t room = MIN((size_t)READ_BYTES, REQUEST_MAX_BYTES - cl->in.len);

	*buf = uv_buf_init(room ? (char *)buf_reserve(&cl->in, room) : NULL, (unsigned)room);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct client *cl = s->data;

	if (cl->closing || n == 0)
		return;
	if (n < 0) {	/* also UV_ENOBUFS: bytes behind the last request */
		client_close(cl);
		return;
	}
	if (cl->streaming || cl->last)
		return;	/* nothing more is expected; cl->in is scratch now */
	cl->in.len += (size_t)n;
	take_requests(cl);
}

/* --- the socket ---------------------------------------------------------- */

static void on_connection(uv_stream_t *server, int status)
{
	struct control *c = server->data;
	struct client *cl;

	if (status < 0 || c->closing)
		return;
	cl = xnew(struct client);
	cl->control = c;
	cl->refs = 2;
	uv_pipe_init(&c->loop->uv, &cl->pipe, 0);
	uv_timer_init(&c->loop->uv, &cl->idle);
	cl->pipe.data = cl->idle.data = cl;
	cl->next = c->clients;
	c->clients = cl;
	c->n_clients++;
	c->refs++;
	if (uv_accept(server, (uv_stream_t *)&cl->pipe) < 0 || c->n_clients > CLIENTS_MAX ||
	    uv_read_start((uv_stream_t *)&cl->pipe, on_alloc, on_read) < 0) {
		client_close(cl);
		return;
	}
	restart_idle(cl);
}

static void on_pipe_closed(uv_handle_t *h)
{
	control_unref(h->data);
}

/* The file appears with its final mode: nobody connects in between. */
static int listen_at(struct control *c, struct error *err)
{
	mode_t old;
	int rc;

	unlink(c->path);
	old = umask(0177);
	rc = uv_pipe_bind(&c->pipe, c->path);
	umask(old);
	if (rc == 0)
		rc = uv_listen((uv_stream_t *)&c->pipe, BACKLOG, on_connection);
	return rc < 0 ? error_sys(err, rc, "listen on `%s`", c->path) : 0;
}

int control_new(struct loop *loop, const struct control_options *opts, struct control **ret,
		struct error *err)
{
	struct control *c = xnew(struct control);

	c->loop = loop;
	c->o = *opts;
	c->path = xstrdup(opts->socket);
	c->refs = 2;
	uv_pipe_init(&loop->uv, &c->pipe, 0);
	c->pipe.data = c;
	if (listen_at(c, err) < 0) {
		control_close(c, NULL, NULL);
		return err->code;
	}
	*ret = c;
	return 0;
}

void control_close(struct control *c, void (*closed)(void *arg), void *arg)
{
	if (c->closing)
		return;
	c->closing = true;
	c->closed = closed;
	c->closed_arg = arg;
	unlink(c->path);
	/* libuv writes at once what the socket takes, so whoever reads has had
	 * the last event before this. */
	for (struct client *cl = c->clients; cl; cl = cl->next)
		client_close(cl);
	uv_close((uv_handle_t *)&c->pipe, on_pipe_closed);
	control_unref(c);
}
