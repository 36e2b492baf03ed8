#include "cmd/limactl/text_table.h"

#include <string.h>

#include "lib/base/mem.h"

enum { DEFAULT_GAP = 2 };

void text_table_done(struct text_table *t)
{
	strv_done(&t->cells);
}

size_t text_table_rows(const struct text_table *t)
{
	return t->cells.len / t->n_columns;
}

static size_t width(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static void measure(struct text_table *t)
{
	for (; t->measured < t->cells.len; t->measured++) {
		size_t *widest = &t->widths[t->measured % t->n_columns];

		*widest = MAX(*widest, width(t->cells.items[t->measured]));
	}
}

static void cut(struct buf *b, size_t columns)
{
	size_t n = 0, keep = 0;

	if (!columns || width(buf_str(b)) <= columns)
		return;
	for (size_t i = 0; i < b->len; i++) {
		if ((b->data[i] & 0xc0) == 0x80)
			continue;
		if (n++ == columns - 1) {
			keep = i;
			break;
		}
	}
	b->len = keep;
	b->data[keep] = 0;
	buf_add_str(b, "…");
}

void text_table_line(struct text_table *t, size_t row, size_t columns, struct buf *ret)
{
	scoped_buf struct buf b = { 0 };

	int gap = (int)(t->gap ? t->gap : DEFAULT_GAP);

	measure(t);
	for (size_t c = 0; c < t->n_columns; c++) {
		const char *cell = t->cells.items[row * t->n_columns + c];
		size_t pad = t->widths[c] - width(cell);
		bool right = t->right >> c & 1;

		buf_addf(&b, "%*s%s%*s", right ? (int)pad : 0, "", cell, (right ? 0 : (int)pad) + gap, "");
	}
	while (b.len && b.data[b.len - 1] == ' ')
		b.data[--b.len] = 0;
	cut(&b, columns);
	buf_add(ret, b.data, b.len);
}
