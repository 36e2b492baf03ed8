#include "drivers/driver.h"

#include "drivers/qemu/driver.h"
#include "lib/base/mem.h"

static const struct driver_ops *const drivers[] = { &qemu_driver_ops, NULL };

const struct driver_ops *driver_find(const char *vm_type)
{
	for (size_t i = 0; drivers[i]; i++)
		if (streq(drivers[i]->name, vm_type))
			return drivers[i];
	return NULL;
}

const struct driver_ops *const *driver_all(void)
{
	return drivers;
}
