/*
 * Small network loads, without an interpreter's cost in the way.
 *
 *   netload serve PORT               TCP: echoes, closes first when asked to; UDP: counts
 *   netload rr   ADDRESS PORT S      one connection, one byte there and back: p50 and p99 in microseconds
 *   netload crr  ADDRESS PORT S      connect, one byte there and back, close: number a second, failed
 *   netload udp  ADDRESS PORT S N    datagrams of N bytes as fast as possible: sent, received a second
 *   netload each ADDRESS PORT S N K  as crr, to the N IPv4 addresses from ADDRESS on, all over the range: number
 *                                    a second, p50 and p99 of connect(), failed; S = 0: K connections, and what each
 *                                    connect() took
 *
 * ADDRESS is IPv4 or IPv6; S seconds, may have a fraction. Prints one JSON object; exits 1 on any error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, SAMPLES_MAX = 4000000, DATAGRAM_MAX = 1500, STRIDE = 7919 };

static void die(const char *what)
{
    fprintf(stderr, "netload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static socklen_t parse(const char *address, const char *port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)out;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (inet_pton(AF_INET, address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(atoi(port));
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, address, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(atoi(port));
        return sizeof *v6;
    }
    errno = EINVAL;
    die(address);
    return 0;
}

/* --- server ----------------------------------------------------------------------------------- */

static int bound(int type, const char *port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(port))};
    int on = 1, off = 0, size = 8 << 20;
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    if (bind(fd, (struct sockaddr *)&any, sizeof any) < 0)
        die("bind");
    return fd;
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

/* A datagram of one byte asks for the count of the larger ones, and starts it anew. */
static void count(int fd, uint64_t *seen)
{
    static char data[BATCH][DATAGRAM_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec vectors[BATCH];
    struct sockaddr_storage peers[BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        vectors[i] = (struct iovec){data[i], DATAGRAM_MAX};
        messages[i].msg_hdr.msg_iov = &vectors[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_name = &peers[i];
        messages[i].msg_hdr.msg_namelen = sizeof peers[i];
    }
    int n = recvmmsg(fd, messages, BATCH, 0, NULL);
    for (int i = 0; i < n; i++) {
        if (messages[i].msg_len > 1) {
            ++*seen;
            continue;
        }
        char text[32];
        int length = snprintf(text, sizeof text, "%llu", (unsigned long long)*seen);
        sendto(fd, text, length, 0, (struct sockaddr *)&peers[i], messages[i].msg_hdr.msg_namelen);
        *seen = 0;
    }
}

static void echo(int fd)
{
    char data[4096];
    ssize_t n = read(fd, data, sizeof data);
    if (n > 0 && write(fd, data, n) == n && data[0] != 'x')
        return;
    if (n < 0 && errno == EAGAIN)
        return;
    close(fd);
}

static _Noreturn void serve(const char *port)
{
    int tcp = bound(SOCK_STREAM, port), udp = bound(SOCK_DGRAM, port), epoll = epoll_create1(0), on = 1;
    uint64_t seen = 0;
    if (listen(tcp, 4096) < 0)
        die("listen");
    watch(epoll, tcp);
    watch(epoll, udp);
    for (;;) {
        struct epoll_event events[BATCH];
        int n = epoll_wait(epoll, events, BATCH, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == udp) {
                count(udp, &seen);
            } else if (fd != tcp) {
                echo(fd);
            } else if ((fd = accept4(tcp, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                watch(epoll, fd);
            }
        }
    }
}

/* --- clients ---------------------------------------------------------------------------------- */

/* -1: nobody answered in time. */
static int attempt(int type, const struct sockaddr_storage *to, socklen_t length)
{
    struct timeval patience = {.tv_sec = 3};
    int on = 1, fd = socket(to->ss_family, type, 0);
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (type == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (const struct sockaddr *)to, length) == 0)
        return fd;
    if (errno != EINPROGRESS && errno != ETIMEDOUT)
        die("connect");
    close(fd);
    return -1;
}

static int opened(int type, const struct sockaddr_storage *to, socklen_t length)
{
    int fd = attempt(type, to, length);
    if (fd < 0)
        die("connect: no answer in time");
    return fd;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int rr(const struct sockaddr_storage *to, socklen_t length, double seconds)
{
    int fd = opened(SOCK_STREAM, to, length);
    float *samples = malloc(SAMPLES_MAX * sizeof *samples);
    size_t n = 0;
    char byte = 'k';
    double start = now(), end = start + seconds;
    while (n < SAMPLES_MAX) {
        double before = now();
        if (before >= end)
            break;
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            die("request");
        samples[n++] = (now() - before) * 1e6;
    }
    qsort(samples, n, sizeof *samples, by_value);
    printf("{\"p50_us\": %.1f, \"p99_us\": %.1f, \"per_s\": %.0f}\n", samples[n / 2],
           samples[n * 99 / 100], n / (now() - start));
    return 0;
}

/* Connect, one byte there and back, close; seconds that connect() took, negative if it failed. */
static double one(const struct sockaddr_storage *to, socklen_t length)
{
    double before = now(), took;
    int fd = attempt(SOCK_STREAM, to, length);
    char byte = 'x';
    took = now() - before;
    if (fd < 0)
        return -took;
    if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
        die("request");
    /* The server closes first: its port is not ephemeral, ours is free again at once. */
    if (read(fd, &byte, 1) != 0)
        die("close");
    close(fd);
    return took;
}

static int each(const struct sockaddr_storage *to, socklen_t length, double seconds, int range, size_t count)
{
    struct sockaddr_storage target = *to;
    struct sockaddr_in *v4 = (struct sockaddr_in *)&target;
    uint32_t first = ntohl(v4->sin_addr.s_addr);
    float *samples = malloc(SAMPLES_MAX * sizeof *samples);
    size_t n = 0, failed = 0;
    double start = now();
    if (to->ss_family != AF_INET || range < 1)
        return 2;
    for (; n < SAMPLES_MAX && (seconds ? now() < start + seconds : n < count); n++) {
        v4->sin_addr.s_addr = htonl(first + n * STRIDE % range);
        samples[n] = one(&target, length) * 1e6;
        failed += samples[n] < 0;
        samples[n] = fabsf(samples[n]);
    }
    double took = now() - start;
    qsort(samples, n, sizeof *samples, by_value);
    printf("{\"p50_us\": %.1f, \"p99_us\": %.1f, \"per_s\": %.0f, \"failed\": %zu, \"each_us\": [",
           samples[n / 2], samples[n * 99 / 100], n / took, failed);
    for (size_t i = 0; !seconds && i < n; i++)
        printf("%s%.1f", i ? ", " : "", samples[i]);
    puts("]}");
    return 0;
}

static int crr(const struct sockaddr_storage *to, socklen_t length, double seconds)
{
    size_t n = 0, failed = 0;
    double start = now(), end = start + seconds;
    for (; now() < end; n++)
        failed += one(to, length) < 0;
    printf("{\"per_s\": %.0f, \"failed\": %zu}\n", (n - failed) / (now() - start), failed);
    return 0;
}

static uint64_t ask_count(int fd)
{
    char text[32];
    for (int tries = 0; tries < 5; tries++) {
        if (send(fd, "?", 1, 0) < 0 && errno != ENOBUFS)
            die("send");
        ssize_t n = recv(fd, text, sizeof text - 1, 0);
        if (n > 0) {
            text[n] = 0;
            return strtoull(text, NULL, 10);
        }
    }
    die("no count");
    return 0;
}

static int udp(const struct sockaddr_storage *to, socklen_t length, double seconds, int size)
{
    static char data[DATAGRAM_MAX];
    struct mmsghdr messages[BATCH];
    struct iovec vector = {data, size};
    struct timespec moment = {.tv_nsec = 200000000};
    int fd = opened(SOCK_DGRAM, to, length);
    uint64_t sent = 0;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &vector;
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    ask_count(fd);
    double start = now(), end = start + seconds;
    while (now() < end) {
        int n = sendmmsg(fd, messages, BATCH, 0);
        if (n < 0 && errno != ENOBUFS && errno != EAGAIN)
            die("send");
        sent += n > 0 ? n : 0;
    }
    double took = now() - start;
    nanosleep(&moment, NULL);
    uint64_t received = ask_count(fd);
    printf("{\"sent_per_s\": %.0f, \"received_per_s\": %.0f}\n", sent / took, received / took);
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_storage to;
    if (argc == 3 && !strcmp(argv[1], "serve"))
        serve(argv[2]);
    if (argc >= 5) {
        socklen_t length = parse(argv[2], argv[3], &to);
        if (!strcmp(argv[1], "rr"))
            return rr(&to, length, atof(argv[4]));
        if (!strcmp(argv[1], "crr"))
            return crr(&to, length, atof(argv[4]));
        if (argc == 7 && !strcmp(argv[1], "each"))
            return each(&to, length, atof(argv[4]), atoi(argv[5]), atoi(argv[6]));
        if (argc == 6 && !strcmp(argv[1], "udp") && atoi(argv[5]) > 1 && atoi(argv[5]) <= DATAGRAM_MAX)
            return udp(&to, length, atof(argv[4]), atoi(argv[5]));
    }
    fputs("usage: netload serve PORT | rr|crr ADDRESS PORT SECONDS | udp ADDRESS PORT SECONDS BYTES"
          " | each ADDRESS PORT SECONDS RANGE COUNT\n", stderr);
    return 2;
}
