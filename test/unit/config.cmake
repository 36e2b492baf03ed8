lima_unit(config_edit lima_config)
lima_unit(config_embed lima_config)
lima_unit(config_load lima_config)
lima_unit(config_locator lima_config)
lima_unit(config_value lima_config)
target_compile_definitions(config_locator_test PRIVATE TEMPLATES="${PROJECT_SOURCE_DIR}/templates")

# One test a file of test/config; what comes out is compared with the file of
# the same name next to it. Files are found when CMake is configured.
add_executable(config_golden ${PROJECT_SOURCE_DIR}/test/config/config_golden.c)
target_link_libraries(config_golden PRIVATE lima_host_flags lima_config lima_base PkgConfig::JANSSON)
file(GLOB GOLDEN CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/test/config/*.yaml)
foreach(yaml ${GOLDEN})
	cmake_path(GET yaml STEM stem)
	add_test(NAME config/${stem} COMMAND config_golden ${yaml})
	set_tests_properties(config/${stem} PROPERTIES LABELS config TIMEOUT 60)
endforeach()
