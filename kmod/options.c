// SPDX-License-Identifier: MIT OR GPL-2.0
/* Socket options: what the hidden socket keeps, and what the stack is told. */
#include <linux/sockptr.h>

#include "netkernel.h"

static void nk_tell(struct nk_sock *nk, u16 name, u64 value)
{
	/* Without a ticket: none of these can fail for the values told. */
	nk_core_set_option(nk->handle, SOL_SOCKET, name, sizeof(int), value, 0, 0);
}

void nk_tell_kept(struct nk_sock *nk)
{
	struct sock *sk = nk->sk;

	if (sk->sk_reuse)
		nk_tell(nk, SO_REUSEADDR, 1);
	if (sk->sk_reuseport)
		nk_tell(nk, SO_REUSEPORT, 1);
	if (sock_flag(sk, SOCK_KEEPOPEN))
		nk_tell(nk, SO_KEEPALIVE, 1);
	/* The kernel doubled what the program asked for, and so will the stack's. */
	if (sk->sk_userlocks & SOCK_SNDBUF_LOCK)
		nk_tell(nk, SO_SNDBUF, sk->sk_sndbuf / 2);
	if (sk->sk_userlocks & SOCK_RCVBUF_LOCK)
		nk_tell(nk, SO_RCVBUF, sk->sk_rcvbuf / 2);
}

/*
 * The kernel's part of it checks the value and keeps it for getsockopt; the stack is told what it must act on. SOL_SOCKET never
 * comes here: the kernel stores those without asking the socket's operations, see nk_tell_kept.
 */
int nk_setsockopt(struct socket *sock, int level, int name, sockptr_t value, unsigned int len)
{
	struct nk_sock *nk = nk_sock_of(sock);
	u64 words[2] = { 0, 0 };
	int rc, policy;
	u8 ticket;

	policy = nk_core_option(level, name);
	if (policy < 0)
		return policy;
	if (policy && len > sizeof(words))
		return -EINVAL;
	if (copy_from_sockptr(words, value, min_t(size_t, len, sizeof(words))))
		return -EFAULT;
	rc = nk->saved->setsockopt(sock, level, name, value, len);
	if (rc || !policy)
		return rc;
	if (policy == 1)
		return nk_core_set_option(nk->handle, level, name, len, words[0], words[1], 0);
	ticket = nk_wait_call_begin();
	return nk_wait_call_end(
		nk_core_set_option(nk->handle, level, name, len, words[0], words[1], ticket));
}

int nk_getsockopt(struct socket *sock, int level, int name, char __user *value, int __user *len)
{
	return nk_sock_of(sock)->saved->getsockopt(sock, level, name, value, len);
}
