/* text_table.h - columns of text that line up
 *
 * Cells are added row by row, the first row is the head. A cell is one line of
 * printable UTF-8; every character counts as one wide.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

#include "lib/base/buf.h"
#include "lib/base/strv.h"

enum { TEXT_TABLE_COLUMNS = 16 };

struct text_table {
	size_t n_columns;	/* at most TEXT_TABLE_COLUMNS */
	size_t gap;		/* between columns; 0: 2 */
	unsigned long right;	/* bit n: column n is flush right */
	struct strv cells;
	size_t widths[TEXT_TABLE_COLUMNS];	/* at least so wide */
	size_t measured;	/* cells that widths has seen */
};

void text_table_done(struct text_table *t);
#define scoped_text_table __attribute__((cleanup(text_table_done)))

size_t text_table_rows(const struct text_table *t);
/* Row @row as one line without its end, at most @columns wide (0: any; a cut is
 * marked by "…"); nothing stands behind the last text. */
void text_table_line(struct text_table *t, size_t row, size_t columns, struct buf *ret);
