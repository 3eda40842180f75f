// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * An ordinary client of an echo server, which knows nothing of NetKernel.
 *   echo ADDRESS PORT BYTES blocking|nonblocking    sends BYTES, reads them back meanwhile, compares, half-closes, sees EOF
 *   echo ADDRESS PORT 0 refused                     connects to a closed port
 *   echo ADDRESS PORT COUNT many                    COUNT connections, one after the other, 8 bytes on each
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define TIMEOUT_MS 20000

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	exit(1);
}

static void expect(int ok, const char *what)
{
	if (!ok)
		fail(what);
}

/* A byte that depends on its place, with a period that is no power of two. */
static unsigned char pattern(size_t at)
{
	return (unsigned char)(at % 251 ^ at >> 13);
}

static void wait_for(int fd, short events)
{
	struct pollfd p = { .fd = fd, .events = events };

	expect(poll(&p, 1, TIMEOUT_MS) == 1, "poll");
}

static int connected(const struct sockaddr_in *to, int nonblocking)
{
	int fd = socket(AF_INET, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
	int error = -1;
	socklen_t len = sizeof(error);
	int rc;

	expect(fd >= 0, "socket");
	rc = connect(fd, (const void *)to, sizeof(*to));
	if (nonblocking && rc) {
		expect(errno == EINPROGRESS, "connect, non-blocking");
		wait_for(fd, POLLOUT);
		expect(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len), "SO_ERROR");
		errno = error;
		rc = error ? -1 : 0;
	}
	expect(rc == 0, "connect");
	return fd;
}

static void check_names(int fd, const struct sockaddr_in *to)
{
	struct sockaddr_in name;
	socklen_t len = sizeof(name);

	expect(!getpeername(fd, (void *)&name, &len) && len == sizeof(name), "getpeername");
	expect(name.sin_port == to->sin_port && name.sin_addr.s_addr == to->sin_addr.s_addr, "peer's name");
	expect(!getsockname(fd, (void *)&name, &len) && name.sin_port != 0, "getsockname");
}

static void echo(const struct sockaddr_in *to, size_t bytes, int nonblocking)
{
	static unsigned char out[100000], in[70000];
	int fd = connected(to, nonblocking);
	size_t sent = 0, got = 0, i;
	ssize_t n;

	check_names(fd, to);
	while (got < bytes) {
		struct pollfd p = { .fd = fd, .events = POLLIN | (sent < bytes ? POLLOUT : 0) };

		expect(poll(&p, 1, TIMEOUT_MS) == 1, "poll");
		if (p.revents & POLLOUT && sent < bytes) {
			/* A length that varies; a blocking write of so little cannot wait for the reader for ever. */
			size_t len = 1 + (sent * 7 + 12345) % (nonblocking ? sizeof(out) : 20000);

			if (len > bytes - sent)
				len = bytes - sent;
			for (i = 0; i < len; i++)
				out[i] = pattern(sent + i);
			n = send(fd, out, len, 0);
			expect(n > 0 || (n < 0 && nonblocking && errno == EAGAIN), "send");
			sent += n > 0 ? n : 0;
		}
		if (p.revents & POLLIN) {
			int ready = 0;

			expect(!ioctl(fd, FIONREAD, &ready) && ready > 0, "FIONREAD");
			n = recv(fd, in, sizeof(in), 0);
			expect(n > 0, "recv");
			for (i = 0; i < (size_t)n; i++) {
				if (in[i] != pattern(got + i)) {
					printf("byte %zu differs\n", got + i);
					exit(1);
				}
			}
			got += n;
		}
	}
	if (nonblocking)
		expect(recv(fd, in, 1, 0) == -1 && errno == EAGAIN, "EAGAIN when all is read");
	expect(!shutdown(fd, SHUT_WR), "shutdown");
	expect(send(fd, in, 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "EPIPE after shutdown");
	wait_for(fd, POLLIN);
	expect(recv(fd, in, sizeof(in), 0) == 0, "EOF");
	expect(!close(fd), "close");
	printf("%zu bytes there and back\n", bytes);
}

static void refused(const struct sockaddr_in *to)
{
	struct pollfd p = { .events = POLLOUT };
	int error = 0;
	socklen_t len = sizeof(error);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	expect(fd >= 0, "socket");
	expect(connect(fd, (const void *)to, sizeof(*to)) == -1 && errno == ECONNREFUSED, "refused, blocking");
	expect(!close(fd), "close");

	p.fd = fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	expect(fd >= 0, "socket");
	if (connect(fd, (const void *)to, sizeof(*to)) == -1 && errno == EINPROGRESS) {
		expect(poll(&p, 1, TIMEOUT_MS) == 1 && p.revents & POLLERR, "POLLERR");
		expect(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len), "SO_ERROR");
		errno = error;
	}
	expect(errno == ECONNREFUSED, "refused, non-blocking");
	expect(!getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) && error == 0, "SO_ERROR is told once");
	expect(!close(fd), "close");
	printf("ECONNREFUSED both ways\n");
}

static void many(const struct sockaddr_in *to, size_t count)
{
	size_t i;

	for (i = 0; i < count; i++) {
		unsigned long long out = i * 0x9e3779b97f4a7c15ull, in = 0;
		int fd = connected(to, i & 1);

		expect(send(fd, &out, sizeof(out), 0) == sizeof(out), "send");
		wait_for(fd, POLLIN);
		expect(recv(fd, &in, sizeof(in), MSG_WAITALL) == sizeof(in), "recv");
		if (in != out) {
			printf("connection %zu got another's bytes\n", i);
			exit(1);
		}
		expect(!close(fd), "close");
	}
	printf("%zu connections\n", count);
}

int main(int argc, char **argv)
{
	struct sockaddr_in to = { .sin_family = AF_INET };

	if (argc != 5 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
		return 2;
	to.sin_port = htons((unsigned short)atoi(argv[2]));
	if (!strcmp(argv[4], "refused"))
		refused(&to);
	else if (!strcmp(argv[4], "many"))
		many(&to, strtoul(argv[3], NULL, 0));
	else
		echo(&to, strtoul(argv[3], NULL, 0), !strcmp(argv[4], "nonblocking"));
	return 0;
}
