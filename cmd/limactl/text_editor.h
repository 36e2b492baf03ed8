/* text_editor.h - a text in the user's editor */
#pragma once

#include "lib/base/buf.h"
#include "lib/base/error.h"

/* Shows @text under the comment lines of @header in $VISUAL, $EDITOR or the first
 * of the usual ones that is installed, and takes what the user left of it, without
 * the header. -ECANCELED when nothing is left, or the editor failed. */
int text_editor_run(const char *header, struct buf *text, struct error *err);
