/* vm.h - plays a driver with a guest in it, commanded over a descriptor
 *
 * The driver's ops for an agent that runs in a child process of the test. The
 * guest is a guest_server on a socket pair with the link handshake, as behind
 * the virtio-serial port, and a listener on the ssh port that says "SSH-". The
 * test writes one-letter commands:
 *
 *	u	Lima's agent listens on its unix socket, behind the fake ssh
 *	s	ssh is ready		b	boot is done
 *	f	boot is done, one script failed
 *	l	the guest agent dies and starts again
 *	R	the guest resets: new boot id, everything from the beginning
 *	p	a second port listens in the guest
 *	P	the guest powers itself off
 *	k	the VM dies of a signal
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "drivers/driver.h"

struct mock_vm_plan {
	int command_fd;
	uint16_t guest_port;		/* a TCP listener in the guest */
	bool start_fails;
	bool silent;			/* no agent on the serial port */
	bool no_sshd;
	bool ignores_powerdown;		/* only force ends it */
	bool runs_already;		/* adopt() finds it */
};
extern struct mock_vm_plan mock_vm_plan;

extern const struct driver_ops mock_vm_ops;
