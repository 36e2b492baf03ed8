#include "hostagent/tail.h"

#include <fcntl.h>
#include <string.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

enum { TAIL_BYTES = 4096, SHOWN_BYTES = 300 };

char *tail_line(const char *instance_dir, enum instance_file file)
{
	scoped_free char *path = layout_instance_file(instance_dir, file);
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	char data[TAIL_BYTES + 1];
	off_t size = fd < 0 ? 0 : lseek(fd, 0, SEEK_END);
	ssize_t n = size > 0 ? pread(fd, data, TAIL_BYTES, size > TAIL_BYTES ? size - TAIL_BYTES : 0)
			     : 0;
	size_t len = n > 0 ? (size_t)n : 0, start;

	while (len && strchr("\r\n\t ", data[len - 1]))
		len--;
	for (start = len; start && data[start - 1] != '\n' && data[start - 1] != '\r'; start--)
		;
	data[len] = 0;
	return log_escape(data + start, SHOWN_BYTES);
}
