// SPDX-License-Identifier: MIT OR GPL-2.0
/* Send and receive. The core asks for copies, which may fault and sleep, while it holds nothing. */
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/uio.h>

#include "netkernel.h"

/* What the core knows as a message. */
struct nk_message {
	struct iov_iter *iter;
	size_t at;	/* bytes that the iterator has moved on */
};

/* A try that lost a race is made again from an earlier byte. */
static void nk_message_seek(struct nk_message *m, size_t at)
{
	if (at < m->at)
		iov_iter_revert(m->iter, m->at - at);
	else
		iov_iter_advance(m->iter, at - m->at);
	m->at = at;
}

bool nk_shell_copy_from(void *message, size_t at, void *to, size_t len);
bool nk_shell_copy_from(void *message, size_t at, void *to, size_t len)
{
	struct nk_message *m = message;
	size_t n;

	nk_message_seek(m, at);
	n = copy_from_iter(to, len, m->iter);
	m->at += n;
	return n == len;
}

bool nk_shell_copy_to(void *message, size_t at, const void *from, size_t len);
bool nk_shell_copy_to(void *message, size_t at, const void *from, size_t len)
{
	struct nk_message *m = message;
	size_t n;

	nk_message_seek(m, at);
	n = copy_to_iter(from, len, m->iter);
	m->at += n;
	return n == len;
}

/* Waits after NK_WAIT_*: 0 to try again, or the errno to return. */
static int nk_wait_more(struct nk_sock *nk, s64 why, int grants_seen, u32 events, long limit,
			long *timeout)
{
	long left;

	if (!*timeout)
		return -EAGAIN;
	if (why == NK_WAIT_GRANT)
		left = nk_wait_grants(grants_seen, *timeout);
	else
		left = nk_wait_socket(nk, events, *timeout);
	if (left < 0)
		return sock_intr_errno(limit);
	*timeout = left;
	return left ? 0 : -EAGAIN;
}

int nk_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct nk_sock *nk = nk_sock_of(sock);
	const long limit = sock_sndtimeo(nk->sk, msg->msg_flags & MSG_DONTWAIT);
	size_t done = 0;
	long timeout = limit;
	int rc = 0;

	if (msg->msg_flags & MSG_OOB)
		return -EOPNOTSUPP;
	nk_wait_sync_error(nk);
	do {
		struct nk_message m = { .iter = &msg->msg_iter };
		int seen = nk_wait_grants_seen();
		s64 n = nk_core_send(nk->handle, &m, len - done);

		nk_message_seek(&m, n > 0 ? n : 0);
		if (n >= 0) {
			done += n;
			if (n == 0)
				break;
		} else if (n == NK_WAIT_SOCKET || n == NK_WAIT_GRANT) {
			rc = nk_wait_more(nk, n, seen, EPOLLOUT, limit, &timeout);
		} else {
			rc = (int)n;
		}
	} while (done < len && !rc);
	nk_wait_sync_error(nk);

	if (done)
		return done;
	if (rc == -EPIPE && !(msg->msg_flags & MSG_NOSIGNAL))
		send_sig(SIGPIPE, current, 0);
	return rc;
}

int nk_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct nk_sock *nk = nk_sock_of(sock);
	const long limit = sock_rcvtimeo(nk->sk, flags & MSG_DONTWAIT);
	size_t target = sock_rcvlowat(nk->sk, flags & MSG_WAITALL, len);
	bool peek = flags & MSG_PEEK, drop = (flags & MSG_TRUNC) && !peek;
	size_t done = 0;
	long timeout = limit;
	int rc = 0;

	if (flags & (MSG_OOB | MSG_ERRQUEUE))
		return flags & MSG_OOB ? -EINVAL : -EAGAIN;
	nk_wait_sync_error(nk);
	for (;;) {
		struct nk_message m = { .iter = &msg->msg_iter };
		s64 n = nk_core_recv(nk->handle, drop ? NULL : &m, len - done, peek);

		nk_message_seek(&m, drop || n < 0 ? 0 : n);
		if (n > 0)
			done += n;
		if (n == 0 || done == len || done >= target)
			break;
		if (n < 0 && n != NK_WAIT_SOCKET) {
			rc = (int)n;
			break;
		}
		/* Without MSG_WAITALL, what is there is enough; a peek cannot go on behind what it saw. */
		if (done && (!(flags & MSG_WAITALL) || peek))
			break;
		if (n > 0)
			continue;
		rc = nk_wait_more(nk, n, 0, EPOLLIN | EPOLLRDHUP, limit, &timeout);
		if (rc)
			break;
	}
	nk_wait_sync_error(nk);
	msg->msg_namelen = 0;
	return done ? done : rc;
}
