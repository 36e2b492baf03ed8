#include "lib/virtio/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/mem.h"

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static int check(const struct memory *m, const struct memory_range *r, struct error *err)
{
	uint64_t end;

	if (m->n == MEMORY_REGIONS_MAX)
		return error_set(err, -E2BIG, "more than %d memory regions", MEMORY_REGIONS_MAX);
	if (r->size == 0 || __builtin_add_overflow(r->gpa, r->size, &end) ||
	    __builtin_add_overflow(r->uva, r->size, &end) ||
	    __builtin_add_overflow(r->offset, r->size, &end) || end > INT64_MAX)
		return error_set(err, -EINVAL,
				 "memory region of %" PRIu64 " bytes at guest address %#" PRIx64
				 " is impossible", r->size, r->gpa);
	for (unsigned i = 0; i < m->n; i++)
		if (overlap(r->gpa, r->size, m->regions[i].gpa, m->regions[i].size) ||
		    overlap(r->uva, r->size, m->regions[i].uva, m->regions[i].size))
			return error_set(err, -EINVAL, "memory regions overlap");
	return 0;
}

/* The file covers the range and will go on to. */
static int check_file(const struct memory_range *r, int fd, struct error *err)
{
	int seals = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (seals < 0 || !(seals & F_SEAL_SHRINK))
		return error_set(err, -EPERM,
				 "guest memory can shrink under us; QEMU needs "
				 "memory-backend-memfd with seal=on");
	if (fstat(fd, &st) < 0)
		return error_sys(err, -errno, "fstat guest memory");
	if (r->offset + r->size > (uint64_t)st.st_size)
		return error_set(err, -EINVAL,
				 "memory region ends at %" PRIu64 " of a memfd of %jd bytes",
				 r->offset + r->size, (intmax_t)st.st_size);
	return 0;
}

int memory_add(struct memory *m, const struct memory_range *r, int fd, struct error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), skew = r->offset & (page - 1);
	struct memory_region *region;
	void *map;

	if (check(m, r, err) < 0 || check_file(r, fd, err) < 0)
		return err->code;
	map = mmap(NULL, r->size + skew, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		   (off_t)(r->offset - skew));
	if (map == MAP_FAILED)
		return error_sys(err, -errno, "map %" PRIu64 " bytes of guest memory", r->size);
	/* the guest's memory is not part of our core dumps */
	madvise(map, r->size + skew, MADV_DONTDUMP);
	region = &m->regions[m->n++];
	*region = (struct memory_region){ .gpa = r->gpa, .uva = r->uva, .size = r->size,
					  .at = (uint8_t *)map + skew, .map = map,
					  .map_len = r->size + skew };
	return 0;
}

void memory_done(struct memory *m)
{
	for (unsigned i = 0; i < m->n; i++)
		munmap(m->regions[i].map, m->regions[i].map_len);
	*m = (struct memory){ 0 };
}

void *memory_at_uva(const struct memory *m, uint64_t uva, uint64_t len, size_t align)
{
	for (unsigned i = 0; i < m->n; i++) {
		const struct memory_region *r = &m->regions[i];
		uint64_t skip = uva - r->uva;

		if (uva < r->uva || skip >= r->size)
			continue;
		if (len > r->size - skip || (uintptr_t)(r->at + skip) % align != 0)
			return NULL;
		return r->at + skip;
	}
	return NULL;
}

int memory_at_gpa(const struct memory *m, uint64_t gpa, uint64_t len, struct iovec *pieces, int max)
{
	int n = 0;

	while (len > 0) {
		const struct memory_region *r = NULL;
		uint64_t here;

		for (unsigned i = 0; i < m->n && !r; i++)
			if (gpa >= m->regions[i].gpa && gpa - m->regions[i].gpa < m->regions[i].size)
				r = &m->regions[i];
		if (!r || n == max)
			return -EFAULT;
		here = MIN(len, r->size - (gpa - r->gpa));
		pieces[n++] = (struct iovec){ r->at + (gpa - r->gpa), here };
		gpa += here;
		len -= here;
	}
	return n;
}
