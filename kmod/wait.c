// SPDX-License-Identifier: MIT OR GPL-2.0
/* What the host tells, and who sleeps for it. */
#include <linux/delay.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "netkernel.h"

/* A reply that takes this long is not coming: the engine is gone. */
#define NK_REPLY_TIMEOUT (30 * HZ)
#define NK_TICKET_MAX 63
#define NK_ALL_EVENTS (EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP | EPOLLRDNORM | EPOLLWRNORM)

/* Socket id to socket, so that an event finds whom it concerns. */
static DEFINE_SPINLOCK(nk_table_lock);
static struct nk_sock **nk_table;
static u32 nk_table_len;

static DECLARE_WAIT_QUEUE_HEAD(nk_grant_queue);
static atomic_t nk_grants = ATOMIC_INIT(0);

/* One synchronous call at a time. */
static DEFINE_MUTEX(nk_call_mutex);
static DECLARE_WAIT_QUEUE_HEAD(nk_reply_queue);
static DEFINE_SPINLOCK(nk_reply_lock);
static u8 nk_ticket;
static bool nk_replied;
static s64 nk_reply_value;

int nk_wait_init(void)
{
	u32 n = nk_core_sockets();
	struct nk_sock **table = kvcalloc(n, sizeof(*table), GFP_KERNEL);

	if (!table)
		return -ENOMEM;
	spin_lock_bh(&nk_table_lock);
	nk_table = table;
	nk_table_len = n;
	spin_unlock_bh(&nk_table_lock);
	return 0;
}

void nk_wait_exit(void)
{
	struct nk_sock **table;

	spin_lock_bh(&nk_table_lock);
	table = nk_table;
	nk_table = NULL;
	nk_table_len = 0;
	spin_unlock_bh(&nk_table_lock);
	kvfree(table);
}

int nk_wait_add(struct nk_sock *nk)
{
	u32 id = (u32)nk->handle;
	int rc = -EBADF;

	spin_lock_bh(&nk_table_lock);
	if (id < nk_table_len && !nk_table[id]) {
		nk_table[id] = nk;
		rc = 0;
	}
	spin_unlock_bh(&nk_table_lock);
	return rc;
}

void nk_wait_remove(struct nk_sock *nk)
{
	u32 id = (u32)nk->handle;

	spin_lock_bh(&nk_table_lock);
	if (id < nk_table_len && nk_table[id] == nk)
		nk_table[id] = NULL;
	spin_unlock_bh(&nk_table_lock);
}

void nk_wait_sync_error(struct nk_sock *nk)
{
	struct sock *sk = nk->sk;
	int pending;

	spin_lock_bh(&nk->error_lock);
	/* getsockopt(SO_ERROR) took it out of sk_err. */
	if (nk->error_posted && !READ_ONCE(sk->sk_err)) {
		nk_core_take_error(nk->handle);
		nk->error_posted = false;
	}
	pending = nk_core_error(nk->handle);
	if (pending && !nk->error_posted) {
		WRITE_ONCE(sk->sk_err, pending);
		nk->error_posted = true;
	} else if (!pending && nk->error_posted) {
		WRITE_ONCE(sk->sk_err, 0);
		nk->error_posted = false;
	}
	spin_unlock_bh(&nk->error_lock);
}

/* With nk_table_lock held, which keeps the socket from being released. */
static void nk_wake(struct nk_sock *nk)
{
	nk_wait_sync_error(nk);
	wake_up_interruptible_poll(sk_sleep(nk->sk), NK_ALL_EVENTS);
}

static void nk_wake_all(void)
{
	u32 i;

	spin_lock_bh(&nk_table_lock);
	for (i = 0; i < nk_table_len; i++)
		if (nk_table[i])
			nk_wake(nk_table[i]);
	spin_unlock_bh(&nk_table_lock);
}

static void nk_reply(const struct nk_incoming *in)
{
	spin_lock_bh(&nk_reply_lock);
	/* Others are late replies of calls that gave up. */
	if (in->id == nk_ticket && !nk_replied) {
		nk_reply_value = in->value;
		nk_replied = true;
	}
	spin_unlock_bh(&nk_reply_lock);
	wake_up(&nk_reply_queue);
}

void nk_wait_events(void)
{
	struct nk_incoming in;

	while (nk_core_next(&in)) {
		switch (in.kind) {
		case NK_INCOMING_REPLY:
			nk_reply(&in);
			break;
		case NK_INCOMING_EVENT:
			spin_lock_bh(&nk_table_lock);
			if (in.id < nk_table_len && nk_table[in.id])
				nk_wake(nk_table[in.id]);
			spin_unlock_bh(&nk_table_lock);
			break;
		case NK_INCOMING_GRANTED:
			atomic_inc(&nk_grants);
			wake_up_all(&nk_grant_queue);
			/* A socket without chunks to send with was not writable. */
			nk_wake_all();
			break;
		case NK_INCOMING_OVERFLOW:
			nk_wake_all();
			break;
		}
	}
}

long nk_wait_socket(struct nk_sock *nk, u32 events, long timeout)
{
	return wait_event_interruptible_timeout(
		*sk_sleep(nk->sk),
		nk_core_poll(nk->handle, events & EPOLLOUT) & (events | EPOLLERR | EPOLLHUP), timeout);
}

int nk_wait_grants_seen(void)
{
	return atomic_read(&nk_grants);
}

long nk_wait_grants(int seen, long timeout)
{
	return wait_event_interruptible_timeout(nk_grant_queue, atomic_read(&nk_grants) != seen, timeout);
}

u8 nk_wait_call_begin(void)
{
	mutex_lock(&nk_call_mutex);
	spin_lock_bh(&nk_reply_lock);
	nk_ticket = nk_ticket % NK_TICKET_MAX + 1;
	nk_replied = false;
	spin_unlock_bh(&nk_reply_lock);
	return nk_ticket;
}

int nk_wait_call_end(int rc)
{
	/* Killable: bind and listen are quick, but a host that is gone must not hold a process for ever. */
	if (!rc) {
		long left = wait_event_killable_timeout(nk_reply_queue, READ_ONCE(nk_replied), NK_REPLY_TIMEOUT);

		spin_lock_bh(&nk_reply_lock);
		if (nk_replied)
			rc = (int)nk_reply_value;
		else
			rc = left < 0 ? -EINTR : -ENETDOWN;
		/* No ticket is 0: what comes now is too late. */
		nk_replied = true;
		spin_unlock_bh(&nk_reply_lock);
	}
	mutex_unlock(&nk_call_mutex);
	return rc;
}

/* For the core, when a ring is full. */
void nk_shell_pause(void);
void nk_shell_pause(void)
{
	usleep_range(500, 1500);
}

void nk_shell_panicked(u32 line);
void nk_shell_panicked(u32 line)
{
	panic("netkernel: a broken invariant in the core, line %u", line);
}
