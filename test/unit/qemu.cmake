# The driver and its parts. Those that need a real QEMU exit with 77 without one.
function(qemu_unit name)
	lima_unit(${name} lima_drivers)
	target_sources(${name}_test PRIVATE ${ARGN})
	target_compile_definitions(${name}_test PRIVATE TEST_DIR="${PROJECT_SOURCE_DIR}/test")
	set_tests_properties(unit/${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

qemu_unit(qemu_args)
qemu_unit(qemu_host)
qemu_unit(qmp ../mock/qmp.c)
qemu_unit(qemu_change ../mock/qmp.c)
qemu_unit(qemu_process)
qemu_unit(qemu_driver)
