lima_unit(forward_rule lima_forward)
foreach(name forward_policy forward_ports forward_slots forward_tcp forward_udp forward_grpc forward_sockets
		forward_reverse)
	lima_unit(${name} lima_forward)
	target_sources(${name}_test PRIVATE ../mock/forward.c ../mock/lane.c)
endforeach()
lima_unit(forward_vsock lima_forward)	# mock/vsock.c stands in for lib/virtio's device
target_sources(forward_vsock_test PRIVATE ../mock/forward.c ../mock/lane.c ../mock/vsock.c)
target_link_libraries(forward_grpc_test PRIVATE mock_proto)

# The host's side alone, at memory speed: build/…/test/unit/forward-lane-bench
add_executable(forward-lane-bench EXCLUDE_FROM_ALL ../bench/forward_lane.c ../mock/forward.c
	../mock/lane.c)
target_link_libraries(forward-lane-bench PRIVATE lima_host_flags lima_forward lima_base
	PkgConfig::CMOCKA)
