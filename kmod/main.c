// SPDX-License-Identifier: MIT OR GPL-2.0
#include <linux/module.h>

#include "netkernel.h"

static int __init nk_init(void)
{
	int rc;

	rc = nk_device_init();
	if (rc)
		return rc;
	if (!nk_device_ready()) {
		/* Nothing can be served: hooking would only break what works now. */
		pr_err("netkernel: no usable NK device\n");
		rc = -ENODEV;
		goto undo_device;
	}
	rc = nk_wait_init();
	if (rc)
		goto undo_device;
	rc = nk_hook_install();
	if (rc)
		goto undo_wait;
	return 0;

undo_wait:
	nk_wait_exit();
undo_device:
	nk_device_exit();
	return rc;
}

/* Every adopted socket holds a reference to the module (proto_ops.owner), so none is left here. */
static void __exit nk_exit(void)
{
	nk_hook_remove();
	nk_device_exit();
	nk_wait_exit();
}

module_init(nk_init);
module_exit(nk_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("NetKernel GuestLib: sockets served by the host's network stack modules");
