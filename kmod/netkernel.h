/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * netkernel.ko: GuestLib for a virtual machine without a NIC.
 *
 * hook.c    catches the creation of TCP sockets (ftrace on inet_create and inet6_create)
 * socket.c  serves the calls on such a socket; waits, locks, copies from and to user memory
 * device.c  the NK device: an ivshmem-doorbell PCI function, its interrupt and its doorbell
 * core/     what the calls mean: rings, NQEs, cells (the GuestLib core, Rust, shared with the process shell)
 */
#ifndef NETKERNEL_H
#define NETKERNEL_H

#include <linux/net.h>
#include <linux/types.h>

/* hook.c */
int nk_hook_install(void);
void nk_hook_remove(void);

/* socket.c */
int nk_socket_adopt(struct socket *sock);
void nk_socket_events(void);
int nk_socket_init(void);
void nk_socket_exit(void);

/* device.c */
int nk_device_init(void);
void nk_device_exit(void);
/* Whether a device is there and its header was accepted. */
bool nk_device_ready(void);

#endif
