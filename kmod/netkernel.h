/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/*
 * netkernel.ko: GuestLib for a virtual machine without a NIC.
 *
 * hook.c    catches the creation of TCP sockets (ftrace on inet_create and inet6_create)
 * socket.c  the operations of such a socket
 * options.c its options
 * data.c    its send and receive, with copies that may fault
 * wait.c    what the host tells: replies, events, grants; who sleeps for them
 * device.c  the NK device: an ivshmem-doorbell PCI function, its interrupt and its doorbell
 * core/     what the calls mean: rings, NQEs, cells (the GuestLib core, Rust, shared with the process shell)
 */
#ifndef NETKERNEL_H
#define NETKERNEL_H

#include <linux/net.h>
#include <linux/types.h>
#include <net/sock.h>

/* A socket of ours; in sk_user_data of the hidden TCP socket, which stays in TCP_CLOSE. */
struct nk_sock {
	struct sock *sk;
	u64 handle;			/* the core's name for it: id | generation << 32 */
	const struct proto_ops *saved;	/* the hidden socket's own */
	spinlock_t error_lock;
	bool error_posted;		/* sk_err shows the cell's pending error */
};

static inline struct nk_sock *nk_sock_of(struct socket *sock)
{
	return sock->sk->sk_user_data;
}

/* hook.c */
int nk_hook_install(void);
void nk_hook_remove(void);
/* Runs the original create for a socket of the family. */
int nk_hook_create_hidden(struct net *net, struct socket *sock, int family);

/* socket.c */
int nk_socket_adopt(struct socket *sock);

/* options.c */
int nk_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int len);
int nk_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *len);
/* What the kernel stored of SOL_SOCKET and the stack needs to know before it binds or connects. */
void nk_tell_kept(struct nk_sock *nk);

/* data.c */
int nk_sendmsg(struct socket *sock, struct msghdr *msg, size_t len);
int nk_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags);

/* wait.c */
int nk_wait_init(void);
void nk_wait_exit(void);
/* Called by the interrupt's thread, one at a time. */
void nk_wait_events(void);
int nk_wait_add(struct nk_sock *nk);
void nk_wait_remove(struct nk_sock *nk);
/* Makes sk_err and the cell's pending error agree: either can be read and taken by the program. */
void nk_wait_sync_error(struct nk_sock *nk);
/* Sleeps until one of the events is there: the time left, 0, or -ERESTARTSYS. */
long nk_wait_socket(struct nk_sock *nk, u32 events, long timeout);
/* What nk_wait_grants compares with; taken before the call that found no grant. */
int nk_wait_grants_seen(void);
long nk_wait_grants(int seen, long timeout);
/* One synchronous call: begin gives a ticket, end waits for its reply (or gives rc back when the push failed). */
u8 nk_wait_call_begin(void);
int nk_wait_call_end(int rc);

/* device.c */
int nk_device_init(void);
void nk_device_exit(void);
/* Whether a device is there and its header was accepted. */
bool nk_device_ready(void);
/* Tells CoreEngine that there is work. */
void nk_device_ring(void);

/* core/, see calls.rs there */
#define NK_WAIT_SOCKET (-5000)
#define NK_WAIT_GRANT (-5001)

struct nk_addr {
	u16 family;
	u16 port;
	u16 scope;
	u16 reserved;
	u8 ip[16];
};

enum nk_incoming_kind {
	NK_INCOMING_REPLY = 1,
	NK_INCOMING_EVENT = 2,
	NK_INCOMING_GRANTED = 3,
	NK_INCOMING_OVERFLOW = 4,
};

struct nk_incoming {
	u32 kind;
	u32 id;
	s64 value;
};

int nk_core_open(void *base, size_t len);
void nk_core_close(void);
u32 nk_core_sockets(void);
s64 nk_core_socket(u16 family, u16 kind, u16 protocol);
void nk_core_release(u64 handle, u32 linger);
int nk_core_connect(u64 handle, const struct nk_addr *to, u8 ticket);
void nk_core_connect_refused(u64 handle);
s64 nk_core_connected(u64 handle);
int nk_core_disconnect(u64 handle, u8 ticket);
void nk_core_disconnected(u64 handle);
s64 nk_core_send(u64 handle, void *message, size_t len);
s64 nk_core_recv(u64 handle, void *message, size_t len, bool peek);
u32 nk_core_poll(u64 handle, bool want_out);
size_t nk_core_available(u64 handle);
size_t nk_core_queued(u64 handle);
int nk_core_error(u64 handle);
int nk_core_take_error(u64 handle);
void nk_core_set_lowat(u64 handle, u32 bytes);
int nk_core_shutdown(u64 handle, u32 how);
int nk_core_address(u64 handle, bool peer, struct nk_addr *to);
int nk_core_bind(u64 handle, const struct nk_addr *to, u8 ticket);
int nk_core_listen(u64 handle, u32 backlog, u8 ticket);
s64 nk_core_accept(u64 handle);
int nk_core_option(int level, int name);
int nk_core_set_option(u64 handle, u8 level, u16 name, u8 length, u64 low, u64 high, u8 ticket);
bool nk_core_next(struct nk_incoming *to);

#endif
