// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Catches the creation of Internet sockets: ftrace with IPMODIFY on inet_create and inet6_create.
 *
 * The original runs first and makes a whole TCP socket, so whatever only stores or reads (SO_TYPE, SO_RCVTIMEO, fcntl,
 * sendfile, fd passing) needs nothing from us; then socket.c replaces its operations.
 */
#include <linux/delay.h>
#include <linux/ftrace.h>
#include <linux/in.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <net/sock.h>

#include "netkernel.h"

struct nk_hook {
	const char *name;
	int (*replacement)(struct net *net, struct socket *sock, int protocol, int kern);
	int (*original)(struct net *net, struct socket *sock, int protocol, int kern);
	struct ftrace_ops ops;
	bool installed;
};

/* Calls that were redirected and are not back yet: the module's text must outlive them. */
static atomic_t nk_in_flight = ATOMIC_INIT(0);

static int nk_after_create(int rc, struct socket *sock, int kern)
{
	if (rc || kern || sock->type != SOCK_STREAM || !sock->sk ||
	    sock->sk->sk_protocol != IPPROTO_TCP)
		return rc;
	rc = nk_socket_adopt(sock);
	if (rc)
		/* Our caller takes a failed create to have left no socket behind. */
		sock->ops->release(sock);
	return rc;
}

static int nk_inet_create(struct net *net, struct socket *sock, int protocol, int kern);
static int nk_inet6_create(struct net *net, struct socket *sock, int protocol, int kern);

static struct nk_hook nk_hooks[] = {
	{ .name = "inet_create", .replacement = nk_inet_create },
	{ .name = "inet6_create", .replacement = nk_inet6_create },
};

static int nk_inet_create(struct net *net, struct socket *sock, int protocol, int kern)
{
	int rc = nk_hooks[0].original(net, sock, protocol, kern);

	rc = nk_after_create(rc, sock, kern);
	atomic_dec(&nk_in_flight);
	return rc;
}

static int nk_inet6_create(struct net *net, struct socket *sock, int protocol, int kern)
{
	int rc = nk_hooks[1].original(net, sock, protocol, kern);

	rc = nk_after_create(rc, sock, kern);
	atomic_dec(&nk_in_flight);
	return rc;
}

static void notrace nk_hook_entry(unsigned long ip, unsigned long parent_ip,
				  struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct nk_hook *hook = container_of(ops, struct nk_hook, ops);

	/* Our own call of the original: let it through. */
	if (within_module(parent_ip, THIS_MODULE))
		return;
	atomic_inc(&nk_in_flight);
	ftrace_instruction_pointer_set(fregs, (unsigned long)hook->replacement);
}

/* kallsyms_lookup_name is not exported; a kprobe that is registered and removed gives the same address. */
static unsigned long nk_symbol_address(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	unsigned long address;

	if (register_kprobe(&probe) < 0)
		return 0;
	address = (unsigned long)probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static int nk_hook_one(struct nk_hook *hook)
{
	unsigned long address = nk_symbol_address(hook->name);
	int rc;

	if (!address)
		return -ENOENT;
	hook->original = (void *)address;
	hook->ops.func = nk_hook_entry;
	hook->ops.flags = FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY;
	rc = ftrace_set_filter_ip(&hook->ops, address, 0, 0);
	if (rc)
		return rc;
	rc = register_ftrace_function(&hook->ops);
	if (rc) {
		ftrace_set_filter_ip(&hook->ops, address, 1, 0);
		return rc;
	}
	hook->installed = true;
	return 0;
}

int nk_hook_install(void)
{
	int i, rc;

	for (i = 0; i < ARRAY_SIZE(nk_hooks); i++) {
		rc = nk_hook_one(&nk_hooks[i]);
		if (rc) {
			pr_err("netkernel: cannot hook %s: %d\n", nk_hooks[i].name, rc);
			nk_hook_remove();
			return rc;
		}
	}
	return 0;
}

int nk_hook_create_hidden(struct net *net, struct socket *sock, int family)
{
	struct nk_hook *hook = &nk_hooks[family == AF_INET ? 0 : 1];

	return hook->original(net, sock, IPPROTO_TCP, 0);
}

void nk_hook_remove(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(nk_hooks); i++) {
		struct nk_hook *hook = &nk_hooks[i];

		if (!hook->installed)
			continue;
		unregister_ftrace_function(&hook->ops);
		ftrace_set_filter_ip(&hook->ops, (unsigned long)hook->original, 1, 0);
		hook->installed = false;
	}
	/* The original may sleep for memory, so a redirected call can take its time. */
	while (atomic_read(&nk_in_flight))
		msleep(1);
	/* And the few instructions after its last atomic_dec. */
	synchronize_rcu_tasks();
}
