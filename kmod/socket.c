// SPDX-License-Identifier: MIT OR GPL-2.0
/* The operations of a socket that the host's stack serves. */
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/sockios.h>
#include <linux/termios.h>
#include <net/ipv6.h>

#include "netkernel.h"

static const struct proto_ops nk_inet_ops, nk_inet6_ops;

/* An address of the program: 0, or why it cannot be one of this socket. */
static int nk_addr_from(struct socket *sock, const struct sockaddr *sa, int len, struct nk_addr *to)
{
	memset(to, 0, sizeof(*to));
	if (len < sizeof(sa->sa_family))
		return -EINVAL;
	if (sa->sa_family != sock->sk->sk_family)
		return -EAFNOSUPPORT;
	to->family = sa->sa_family;
	if (sa->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)sa;

		if (len < sizeof(*in))
			return -EINVAL;
		to->port = ntohs(in->sin_port);
		memcpy(to->ip, &in->sin_addr, 4);
	} else {
		const struct sockaddr_in6 *in6 = (const void *)sa;

		if (len < SIN6_LEN_RFC2133)
			return -EINVAL;
		to->port = ntohs(in6->sin6_port);
		memcpy(to->ip, &in6->sin6_addr, 16);
		if (len >= sizeof(*in6))
			to->scope = (u16)in6->sin6_scope_id;
	}
	return 0;
}

static int nk_addr_to(struct socket *sock, const struct nk_addr *from, struct sockaddr *sa)
{
	if (sock->sk->sk_family == AF_INET) {
		struct sockaddr_in *in = (void *)sa;

		memset(in, 0, sizeof(*in));
		in->sin_family = AF_INET;
		in->sin_port = htons(from->port);
		memcpy(&in->sin_addr, from->ip, 4);
		return sizeof(*in);
	} else {
		struct sockaddr_in6 *in6 = (void *)sa;

		memset(in6, 0, sizeof(*in6));
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(from->port);
		if (from->family == AF_INET) {
			__be32 v4;

			memcpy(&v4, from->ip, 4);
			ipv6_addr_set_v4mapped(v4, &in6->sin6_addr);
		} else {
			memcpy(&in6->sin6_addr, from->ip, 16);
			in6->sin6_scope_id = from->scope;
		}
		return sizeof(*in6);
	}
}

/* Puts our operations over a hidden TCP socket's. */
static int nk_cover(struct socket *sock, u64 handle)
{
	struct nk_sock *nk = kzalloc(sizeof(*nk), GFP_KERNEL_ACCOUNT);
	int rc;

	if (!nk)
		return -ENOBUFS;
	nk->sk = sock->sk;
	nk->handle = handle;
	nk->saved = sock->ops;
	spin_lock_init(&nk->error_lock);
	rc = nk_wait_add(nk);
	if (rc) {
		kfree(nk);
		return rc;
	}
	sock->sk->sk_user_data = nk;
	sock->ops = sock->sk->sk_family == AF_INET ? &nk_inet_ops : &nk_inet6_ops;
	return 0;
}

int nk_socket_adopt(struct socket *sock)
{
	long timeout = MAX_SCHEDULE_TIMEOUT;
	s64 handle;
	int rc;

	for (;;) {
		int seen = nk_wait_grants_seen();

		handle = nk_core_socket(sock->sk->sk_family, SOCK_STREAM, IPPROTO_TCP);
		if (handle != NK_WAIT_GRANT)
			break;
		timeout = nk_wait_grants(seen, timeout);
		if (timeout < 0)
			return -EINTR;
	}
	if (handle < 0)
		return (int)handle;
	rc = nk_cover(sock, handle);
	if (rc)
		nk_core_release(handle, 0);
	return rc;
}

static int nk_release(struct socket *sock)
{
	struct nk_sock *nk;
	const struct proto_ops *saved;
	u32 linger = 0;

	/* Natively, too, there is nothing to release in a socket that has no sock. */
	if (!sock->sk)
		return 0;
	nk = nk_sock_of(sock);
	saved = nk->saved;
	if (sock_flag(sock->sk, SOCK_LINGER))
		linger = sock->sk->sk_lingertime / HZ + 1;
	nk_wait_remove(nk);
	nk_core_release(nk->handle, linger);
	sock->sk->sk_user_data = NULL;
	sock->ops = saved;
	kfree(nk);
	return saved->release(sock);
}

static int nk_bind(struct socket *sock, struct sockaddr *sa, int len)
{
	struct nk_sock *nk = nk_sock_of(sock);
	struct nk_addr addr;
	int rc = nk_addr_from(sock, sa, len, &addr);
	u8 ticket;

	if (rc)
		return rc;
	nk_tell_kept(nk);
	ticket = nk_wait_call_begin();
	return nk_wait_call_end(nk_core_bind(nk->handle, &addr, ticket));
}

static int nk_connect_start(struct socket *sock, struct sockaddr *sa, int len)
{
	struct nk_sock *nk = nk_sock_of(sock);
	struct nk_addr addr;
	u8 ticket;
	int rc;

	if (len >= sizeof(sa->sa_family) && sa->sa_family == AF_UNSPEC) {
		ticket = nk_wait_call_begin();
		rc = nk_wait_call_end(nk_core_disconnect(nk->handle, ticket));
		if (rc)
			return rc;
		nk_core_disconnected(nk->handle);
		sock->state = SS_UNCONNECTED;
		/* 1: done, there is nothing to wait for. */
		return 1;
	}
	rc = nk_addr_from(sock, sa, len, &addr);
	if (rc)
		return rc;
	nk_tell_kept(nk);
	ticket = nk_wait_call_begin();
	rc = nk_core_connect(nk->handle, &addr, ticket);
	if (rc) {
		/* Not asked: no reply comes. */
		return nk_wait_call_end(rc);
	}
	rc = nk_wait_call_end(0);
	if (rc && rc != -EINPROGRESS)
		nk_core_connect_refused(nk->handle);
	return rc == -EINPROGRESS ? 0 : rc;
}

static int nk_connect(struct socket *sock, struct sockaddr *sa, int len, int flags)
{
	struct nk_sock *nk = nk_sock_of(sock);
	const long limit = sock_sndtimeo(nk->sk, flags & O_NONBLOCK);
	long timeout = limit;
	bool started;
	s64 stands;
	int rc;

	nk_wait_sync_error(nk);
	rc = nk_connect_start(sock, sa, len);
	if (rc == 1)
		return 0;
	started = rc == 0;
	if (rc && rc != -EALREADY && rc != -EISCONN)
		goto out;
	for (;;) {
		stands = nk_core_connected(nk->handle);
		if (stands != NK_WAIT_SOCKET)
			break;
		if (!timeout) {
			rc = started ? -EINPROGRESS : -EALREADY;
			goto out;
		}
		timeout = nk_wait_socket(nk, EPOLLIN | EPOLLOUT, timeout);
		if (timeout < 0) {
			rc = sock_intr_errno(limit);
			goto out;
		}
		started = true;
	}
	rc = (int)stands;
	if (!rc)
		sock->state = SS_CONNECTED;
out:
	nk_wait_sync_error(nk);
	return rc;
}

static int nk_listen(struct socket *sock, int backlog)
{
	struct nk_sock *nk = nk_sock_of(sock);
	u8 ticket = nk_wait_call_begin();

	return nk_wait_call_end(nk_core_listen(nk->handle, backlog, ticket));
}

static int nk_set_rcvlowat(struct sock *sk, int bytes)
{
	struct nk_sock *nk = sk->sk_user_data;

	WRITE_ONCE(sk->sk_rcvlowat, bytes ? : 1);
	nk_core_set_lowat(nk->handle, bytes);
	return 0;
}

/* What Linux copies from a listener, of what the kernel itself keeps. */
static void nk_inherit(const struct sock *from, struct sock *to)
{
	to->sk_rcvtimeo = from->sk_rcvtimeo;
	to->sk_sndtimeo = from->sk_sndtimeo;
	to->sk_lingertime = from->sk_lingertime;
	if (sock_flag(from, SOCK_LINGER))
		sock_set_flag(to, SOCK_LINGER);
	nk_set_rcvlowat(to, from->sk_rcvlowat);
}

static int nk_accept(struct socket *sock, struct socket *newsock, int flags, bool kern)
{
	struct nk_sock *nk = nk_sock_of(sock);
	const long limit = sock_rcvtimeo(nk->sk, flags & O_NONBLOCK);
	long timeout = limit;
	s64 handle;
	int rc;

	for (;;) {
		handle = nk_core_accept(nk->handle);
		if (handle != NK_WAIT_SOCKET)
			break;
		if (!timeout)
			return -EAGAIN;
		timeout = nk_wait_socket(nk, EPOLLIN, timeout);
		if (timeout < 0)
			return sock_intr_errno(limit);
	}
	if (handle < 0)
		return (int)handle;
	rc = nk_hook_create_hidden(sock_net(nk->sk), newsock, nk->sk->sk_family);
	if (rc)
		goto undo_handle;
	rc = nk_cover(newsock, handle);
	if (rc) {
		newsock->ops->release(newsock);
		goto undo_handle;
	}
	nk_inherit(nk->sk, newsock->sk);
	newsock->state = SS_CONNECTED;
	return 0;

undo_handle:
	/* Our caller gave a reference to the module with our operations; they give it back. */
	newsock->sk = NULL;
	newsock->ops = sock->ops;
	nk_core_release(handle, 0);
	return rc;
}

static int nk_getname(struct socket *sock, struct sockaddr *sa, int peer)
{
	struct nk_addr addr;
	int rc = nk_core_address(nk_sock_of(sock)->handle, peer, &addr);

	return rc ? rc : nk_addr_to(sock, &addr, sa);
}

static __poll_t nk_poll(struct file *file, struct socket *sock, poll_table *wait)
{
	struct nk_sock *nk = nk_sock_of(sock);

	sock_poll_wait(file, sock, wait);
	nk_wait_sync_error(nk);
	return nk_core_poll(nk->handle, poll_requested_events(wait) & EPOLLOUT);
}

static int nk_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct nk_sock *nk = nk_sock_of(sock);

	switch (cmd) {
	case SIOCINQ:
		return put_user((int)nk_core_available(nk->handle), (int __user *)arg);
	case SIOCOUTQ:
		return put_user((int)nk_core_queued(nk->handle), (int __user *)arg);
	default:
		return nk->saved->ioctl(sock, cmd, arg);
	}
}

static int nk_shutdown(struct socket *sock, int how)
{
	struct nk_sock *nk = nk_sock_of(sock);
	int rc = nk_core_shutdown(nk->handle, how);

	/* Who waits in this machine sees it at once. */
	if (!rc)
		wake_up_interruptible_all(sk_sleep(nk->sk));
	return rc;
}

#define NK_OPS(FAMILY) {				\
	.family = FAMILY,				\
	.owner = THIS_MODULE,				\
	.release = nk_release,				\
	.bind = nk_bind,				\
	.connect = nk_connect,				\
	.socketpair = sock_no_socketpair,		\
	.accept = nk_accept,				\
	.getname = nk_getname,				\
	.poll = nk_poll,				\
	.ioctl = nk_ioctl,				\
	.gettstamp = sock_gettstamp,			\
	.listen = nk_listen,				\
	.shutdown = nk_shutdown,			\
	.setsockopt = nk_setsockopt,			\
	.getsockopt = nk_getsockopt,			\
	.sendmsg = nk_sendmsg,				\
	.recvmsg = nk_recvmsg,				\
	.mmap = sock_no_mmap,				\
	.sendpage = sock_no_sendpage,			\
	.set_rcvlowat = nk_set_rcvlowat,		\
}

static const struct proto_ops nk_inet_ops = NK_OPS(PF_INET);
static const struct proto_ops nk_inet6_ops = NK_OPS(PF_INET6);
