# proto: gRPC between host and guest agent, both in one process
add_library(mock_proto STATIC ${PROJECT_SOURCE_DIR}/test/mock/proto_world.c
	${PROJECT_SOURCE_DIR}/test/mock/byte_port.c)
target_link_libraries(mock_proto PUBLIC lima_proto PkgConfig::CMOCKA PRIVATE lima_host_flags)
lima_unit(proto_tunnel mock_proto lima_proto)
lima_unit(proto_wire lima_proto)
lima_unit(proto_client mock_proto lima_proto)
lima_unit(proto_link mock_proto lima_proto)

# test/bench/proto_bench and, for test/bench/proto_vm, its half in the guest:
# built only when asked for.
add_executable(proto_bench EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/test/bench/proto_bench.c)
target_link_libraries(proto_bench PRIVATE lima_host_flags lima_proto)
add_executable(proto_bench_guest EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/test/bench/proto_bench.c)
target_link_libraries(proto_bench_guest PRIVATE lima_guest_flags lima_proto_guest -static -no-pie
	-Wl,--gc-sections)
set_target_properties(proto_bench_guest PROPERTIES LINK_SEARCH_START_STATIC ON
	LINK_SEARCH_END_STATIC ON)
