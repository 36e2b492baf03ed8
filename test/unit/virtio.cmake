add_library(mock_vsock STATIC ../mock/vsock_guest.c)
add_library(mock_vsock_fx STATIC ../mock/vsock_fx.c)
target_link_libraries(mock_vsock_fx PUBLIC mock_vsock lima_virtio lima_base PRIVATE lima_host_flags)
target_link_libraries(mock_vsock PUBLIC lima_virtio lima_base PRIVATE lima_host_flags)

lima_unit(vsock lima_virtio mock_vsock_fx)
lima_unit(vsock_life lima_virtio mock_vsock_fx)
lima_unit(vsock_frame lima_virtio mock_vsock_fx)

# The device alone, at memory speed: build/…/test/unit/vsock-device-bench
add_executable(vsock-device-bench EXCLUDE_FROM_ALL ../bench/vsock_device.c)
target_link_libraries(vsock-device-bench PRIVATE lima_host_flags mock_vsock lima_virtio lima_base)
