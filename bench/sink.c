/* An SMSC that takes everything at once: the same sink for every gateway under test, so written that it is never the limit.
 *
 * usage: sink PORT CONTROL_PORT CALLBACK_PORT [receipts]
 *
 * SMPP 3.4, one thread, epoll. Answers binds, submit_sm (ids 1, 2, 3 …), enquire_link and unbind; with `receipts` it sends a DELIVRD receipt
 * for each submit_sm that asks for one, on the same session, right behind the response.
 *
 * Callback port: answers every HTTP request with 204 and counts it.
 *
 * Control port (a line in, a line out): `stats` → "submits receipts acked callbacks first_ns last_ns last_callback_ns" (CLOCK_MONOTONIC; first and
 * last are of submit_sm);
 * `dump PATH` → writes the 64-bit FNV-1a hash of each submit's (destination, text), native order, → the count; `reset` → "ok".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LISTEN_SMPP, LISTEN_CONTROL, LISTEN_CALLBACK, SMPP, CONTROL, CALLBACK };

struct conn {
    int fd, kind, writing;
    uint8_t *in, *out;
    size_t in_len, in_cap, out_len, out_cap, out_at;
    uint32_t sequence;
};

static int epfd, receipts;
static uint64_t submits, sent, acked, callbacks, first_ns, last_ns, last_callback_ns;
static uint64_t *seen;
static size_t seen_cap;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *grow(void *p, size_t *cap, size_t need, size_t unit) {
    if (need <= *cap) return p;
    size_t n = *cap ? *cap : 4096;
    while (n < need) n *= 2;
    p = realloc(p, n * unit);
    if (!p) { perror("sink"); exit(1); }
    *cap = n;
    return p;
}

static uint32_t get32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }
static void put32(uint8_t *p, uint32_t v) { p[0] = v >> 24; p[1] = v >> 16; p[2] = v >> 8; p[3] = v; }

static void out(struct conn *c, const void *data, size_t len) {
    c->out = grow(c->out, &c->out_cap, c->out_len + len, 1);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

static void pdu(struct conn *c, uint32_t id, uint32_t sequence, const void *body, size_t len) {
    uint8_t head[16];
    put32(head, 16 + (uint32_t)len);
    put32(head + 4, id);
    put32(head + 8, 0);
    put32(head + 12, sequence);
    out(c, head, 16);
    out(c, body, len);
}

static const uint8_t *cstring(const uint8_t **p, const uint8_t *end) {
    const uint8_t *start = *p, *z = memchr(start, 0, (size_t)(end - start));
    *p = z ? z + 1 : end;
    return start;
}

static void receipt(struct conn *c, const char *source, const char *dest, const char *id) {
    uint8_t body[512];
    size_t n = 0;
    char text[200];
    int len = snprintf(text, sizeof text,
                       "id:%s sub:001 dlvrd:001 submit date:2601010000 done date:2601010000 stat:DELIVRD err:000 text:", id);
    body[n++] = 0;
    body[n++] = 1; body[n++] = 1;
    n += (size_t)sprintf((char *)body + n, "%.20s", dest) + 1;
    body[n++] = 1; body[n++] = 1;
    n += (size_t)sprintf((char *)body + n, "%.20s", source) + 1;
    body[n++] = 4; /* esm_class: delivery receipt */
    memset(body + n, 0, 8); /* protocol_id, priority, schedule, validity, registered, replace, data_coding, default id */
    n += 8;
    body[n++] = (uint8_t)len;
    memcpy(body + n, text, (size_t)len);
    n += (size_t)len;
    c->sequence = c->sequence % 0x7fffffff + 1;
    pdu(c, 5, c->sequence, body, n);
    sent++;
}

static void submit(struct conn *c, const uint8_t *p, const uint8_t *end, uint32_t sequence) {
    char id[24];
    cstring(&p, end); /* service_type */
    p += 2;
    const uint8_t *source = cstring(&p, end);
    p += 2;
    const uint8_t *dest = cstring(&p, end);
    const uint8_t *dest_end = p;
    p += 3; /* esm_class, protocol_id, priority */
    cstring(&p, end);
    cstring(&p, end);
    if (p + 5 > end) { fprintf(stderr, "sink: short submit_sm\n"); exit(1); }
    int wanted = p[0] & 3;
    p += 4;
    size_t len = *p++;
    const uint8_t *text = p;
    if (p + len > end) { fprintf(stderr, "sink: bad sm_length\n"); exit(1); }
    if (len == 0) { text = p; len = (size_t)(end - p); } /* message_payload */
    uint64_t h = 14695981039346656037u;
    for (const uint8_t *q = dest; q < dest_end; q++) h = (h ^ *q) * 1099511628211u;
    for (size_t i = 0; i < len; i++) h = (h ^ text[i]) * 1099511628211u;
    seen = grow(seen, &seen_cap, submits + 1, sizeof *seen);
    seen[submits++] = h;
    last_ns = now_ns();
    if (!first_ns) first_ns = last_ns;
    int n = sprintf(id, "%llu", (unsigned long long)submits);
    pdu(c, 0x80000004, sequence, id, (size_t)n + 1);
    if (receipts && wanted) receipt(c, (const char *)source, (const char *)dest, id);
}

static int smpp(struct conn *c) {
    size_t at = 0;
    while (c->in_len - at >= 16) {
        uint8_t *p = c->in + at;
        uint32_t len = get32(p), id = get32(p + 4), sequence = get32(p + 12);
        if (len < 16 || len > 65536) return -1;
        if (c->in_len - at < len) break;
        switch (id) {
        case 1: case 2: case 9: pdu(c, id | 0x80000000u, sequence, "sink", 5); break;
        case 4: submit(c, p + 16, p + len, sequence); break;
        case 0x15: case 6: pdu(c, id | 0x80000000u, sequence, "", 0); break;
        case 0x80000005u: acked += get32(p + 8) == 0; break;
        }
        at += len;
    }
    memmove(c->in, c->in + at, c->in_len - at);
    c->in_len -= at;
    return 0;
}

/* Requests with a Content-Length or without a body, one after the other. */
static int callback(struct conn *c) {
    static const char answer[] = "HTTP/1.1 204 No Content\r\n\r\n";
    for (;;) {
        c->in = grow(c->in, &c->in_cap, c->in_len + 1, 1);
        c->in[c->in_len] = 0;
        char *start = (char *)c->in, *end = strstr(start, "\r\n\r\n"), *length = strcasestr(start, "content-length:");
        if (!end) return 0;
        size_t size = (size_t)(end - start) + 4 + (length && length < end ? strtoul(length + 15, NULL, 10) : 0);
        if (c->in_len < size) return 0;
        out(c, answer, sizeof answer - 1);
        callbacks++;
        last_callback_ns = now_ns();
        memmove(c->in, c->in + size, c->in_len - size);
        c->in_len -= size;
    }
}

static int control(struct conn *c) {
    char answer[200];
    uint8_t *nl = memchr(c->in, '\n', c->in_len);
    if (!nl) return 0;
    *nl = 0;
    char *line = (char *)c->in;
    if (!strcmp(line, "stats")) {
        sprintf(answer, "%llu %llu %llu %llu %llu %llu %llu\n", (unsigned long long)submits, (unsigned long long)sent,
                (unsigned long long)acked, (unsigned long long)callbacks, (unsigned long long)first_ns, (unsigned long long)last_ns,
                (unsigned long long)last_callback_ns);
    } else if (!strcmp(line, "reset")) {
        submits = sent = acked = callbacks = first_ns = last_ns = last_callback_ns = 0;
        strcpy(answer, "ok\n");
    } else if (!strncmp(line, "dump ", 5)) {
        FILE *f = fopen(line + 5, "wb");
        if (!f || fwrite(seen, sizeof *seen, submits, f) != submits || fclose(f)) { perror("sink: dump"); exit(1); }
        sprintf(answer, "%llu\n", (unsigned long long)submits);
    } else {
        strcpy(answer, "?\n");
    }
    out(c, answer, strlen(answer));
    c->in_len = 0;
    return 0;
}

static void watch(struct conn *c, int op) {
    struct epoll_event e = {.events = EPOLLIN | (c->writing ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(epfd, op, c->fd, &e)) { perror("sink: epoll"); exit(1); }
}

static void end(struct conn *c) {
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static struct conn *new_conn(int fd, int kind) {
    struct conn *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->kind = kind;
    watch(c, EPOLL_CTL_ADD);
    return c;
}

static void listener(int port, int kind) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 64)) { perror("sink: listen"); exit(1); }
    new_conn(fd, kind);
}

static int serve(struct conn *c) {
    for (;;) {
        c->in = grow(c->in, &c->in_cap, c->in_len + 65536, 1);
        ssize_t n = recv(c->fd, c->in + c->in_len, 65536, MSG_DONTWAIT);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n < 0) break;
        c->in_len += (size_t)n;
        if (c->kind == SMPP ? smpp(c) : c->kind == CONTROL ? control(c) : callback(c)) return -1;
        if (n < 65536) break;
    }
    while (c->out_at < c->out_len) {
        ssize_t n = send(c->fd, c->out + c->out_at, c->out_len - c->out_at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN) return -1;
        if (n < 0) break;
        c->out_at += (size_t)n;
    }
    if (c->out_at == c->out_len) c->out_at = c->out_len = 0;
    int writing = c->out_len > 0;
    if (writing != c->writing) {
        c->writing = writing;
        watch(c, EPOLL_CTL_MOD);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 4) { fprintf(stderr, "usage: sink PORT CONTROL_PORT CALLBACK_PORT [receipts]\n"); return 2; }
    receipts = argc > 4;
    epfd = epoll_create1(0);
    listener(atoi(argv[1]), LISTEN_SMPP);
    listener(atoi(argv[2]), LISTEN_CONTROL);
    listener(atoi(argv[3]), LISTEN_CALLBACK);
    struct epoll_event events[64];
    for (;;) {
        int n = epoll_wait(epfd, events, 64, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c->kind <= LISTEN_CALLBACK) {
                int fd = accept4(c->fd, NULL, NULL, SOCK_NONBLOCK), on = 1;
                if (fd < 0) continue;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                new_conn(fd, c->kind + SMPP);
            } else if (serve(c)) {
                end(c);
            }
        }
    }
}
