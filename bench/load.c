/* HTTP load with exact accounting: every request is counted with its answer; at the end it waits for the answers that are still owed.
 *
 * usage: load HOST PORT[,PORT…] TEMPLATE CONNECTIONS SECONDS RATE FIRST OUT
 *
 * The connections are spread over the ports in turn. TEMPLATE is a file with one whole HTTP/1.1 request; each `@@@@@@@@@@` in it is replaced by a ten-digit number, counted up from FIRST: first
 * occurrence by occurrence, then request by request. RATE is requests a second over all connections (0: as fast as answers come).
 * With a rate, latency counts from the time that a request was due, so that waiting behind a slow one counts too (no coordinated omission).
 * OUT gets one JSON object: counts by status, seconds, latency percentiles in µs, begin and end as CLOCK_MONOTONIC ns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARK "@@@@@@@@@@"
#define IN_CAP (8u << 20)

struct conn {
    int fd, busy;
    uint64_t due;
    char *in;
    size_t in_len, out_at;
    char *request;
};

static char *template;
static size_t template_len, marks[20000], n_marks;
static uint64_t number, statuses[600], broken;
static uint32_t *latencies;
static size_t n_latencies, cap_latencies;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

static void push_out(struct conn *c) {
    while (c->out_at < template_len) {
        ssize_t n = send(c->fd, c->request + c->out_at, template_len - c->out_at, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            struct timespec pause = {0, 200000};
            nanosleep(&pause, NULL); /* a large batch: the receiver is slower than we are */
            continue;
        }
        if (n < 0) die("load: send");
        c->out_at += (size_t)n;
    }
}

static void begin(struct conn *c, uint64_t due) {
    for (size_t i = 0; i < n_marks; i++) {
        uint64_t v = number++;
        for (int d = 9; d >= 0; d--, v /= 10) c->request[marks[i] + (size_t)d] = (char)('0' + v % 10);
    }
    c->busy = 1;
    c->due = due;
    c->out_at = 0;
    push_out(c);
}

/* 1: a whole answer was taken; 0: more to come. */
static int take(struct conn *c) {
    c->in[c->in_len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    size_t head = (size_t)(end - c->in) + 4, body = 0;
    int chunked = 0;
    for (char *line = c->in; line && line < end; line = strstr(line, "\r\n"), line = line ? line + 2 : NULL) {
        if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) chunked = 1;
    }
    for (size_t size = 1; chunked && size;) { /* body: up to the end of the chunk of size 0 */
        char *at = c->in + head + body, *nl = strstr(at, "\r\n");
        if (!nl) return 0;
        size = strtoul(at, NULL, 16);
        body += (size_t)(nl - at) + 2 + size + 2;
        if (head + body > c->in_len) return 0;
    }
    if (c->in_len < head + body) return 0;
    int status = atoi(c->in + 9);
    if (status < 0 || status > 599) status = 0;
    statuses[status]++;
    memmove(c->in, c->in + head + body, c->in_len - head - body);
    c->in_len -= head + body;
    return 1;
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t percentile(double p) {
    return n_latencies ? latencies[(size_t)(p * (double)(n_latencies - 1))] : 0;
}

int main(int argc, char **argv) {
    if (argc != 9) { fprintf(stderr, "usage: load HOST PORT[,PORT...] TEMPLATE CONNECTIONS SECONDS RATE FIRST OUT\n"); return 2; }
    FILE *f = fopen(argv[3], "rb");
    if (!f) die(argv[3]);
    template = malloc(32u << 20);
    template_len = fread(template, 1, 32u << 20, f);
    fclose(f);
    for (char *p = template; (p = memmem(p, template_len - (size_t)(p - template), MARK, 10)); p += 10) marks[n_marks++] = (size_t)(p - template);
    int n_conns = atoi(argv[4]);
    double seconds = atof(argv[5]), rate = atof(argv[6]);
    number = strtoull(argv[7], NULL, 10);
    int epfd = epoll_create1(0);
    struct conn *conns = calloc((size_t)n_conns, sizeof *conns);
    struct sockaddr_in a = {.sin_family = AF_INET};
    inet_pton(AF_INET, argv[1], &a.sin_addr);
    char *port = argv[2];
    for (int i = 0; i < n_conns; i++) {
        struct conn *c = conns + i;
        int on = 1;
        a.sin_port = htons((uint16_t)atoi(port));
        port = strchr(port, ',') ? strchr(port, ',') + 1 : argv[2];
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(c->fd, (struct sockaddr *)&a, sizeof a)) die("load: connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        c->in = malloc(IN_CAP + 1);
        c->request = malloc(template_len);
        memcpy(c->request, template, template_len);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epfd, EPOLL_CTL_ADD, c->fd, &e);
    }
    uint64_t began = now_ns(), until = began + (uint64_t)(seconds * 1e9), requests = 0, ended = began, give_up = until + 30000000000u;
    double gap = rate > 0 ? 1e9 / rate : 0;
    int busy = 0, open = n_conns;
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_ns();
        if (now < until) {
            for (int i = 0; i < n_conns && busy < open; i++) {
                struct conn *c = conns + i;
                if (c->busy || c->fd < 0) continue;
                uint64_t due = gap > 0 ? began + (uint64_t)((double)requests * gap) : now;
                if (due > now) break;
                begin(c, due);
                requests++;
                busy++;
            }
        } else if (!busy || now > give_up) {
            break;
        }
        int wait = gap > 0 && now < until ? 1 : 100;
        int n = epoll_wait(epfd, events, 256, wait);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            ssize_t got = recv(c->fd, c->in + c->in_len, IN_CAP - c->in_len, MSG_DONTWAIT);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0) {
                if (c->busy) { busy--; broken++; }
                c->busy = 0;
                close(c->fd);
                c->fd = -1;
                if (!--open) { fprintf(stderr, "load: the server closed every connection\n"); return 1; }
                continue;
            }
            c->in_len += (size_t)got;
            if (c->busy && take(c)) {
                ended = now_ns();
                if (n_latencies == cap_latencies) {
                    cap_latencies = cap_latencies ? cap_latencies * 2 : 1u << 16;
                    latencies = realloc(latencies, cap_latencies * sizeof *latencies);
                }
                latencies[n_latencies++] = (uint32_t)((ended - c->due) / 1000);
                c->busy = 0;
                busy--;
                if (gap == 0 && ended < until) {
                    begin(c, ended);
                    requests++;
                    busy++;
                }
            }
        }
    }
    qsort(latencies, n_latencies, sizeof *latencies, by_value);
    f = fopen(argv[8], "w");
    if (!f) die(argv[8]);
    fprintf(f, "{\"requests\": %llu, \"unanswered\": %llu, \"next\": %llu, \"seconds\": %.6f, \"begin_ns\": %llu, \"end_ns\": %llu, \"statuses\": {",
            (unsigned long long)requests, (unsigned long long)(broken + (uint64_t)busy), (unsigned long long)number, (double)(ended - began) / 1e9,
            (unsigned long long)began, (unsigned long long)ended);
    const char *comma = "";
    for (int s = 0; s < 600; s++)
        if (statuses[s]) { fprintf(f, "%s\"%d\": %llu", comma, s, (unsigned long long)statuses[s]); comma = ", "; }
    fprintf(f, "}, \"latency_us\": {\"p50\": %u, \"p90\": %u, \"p99\": %u, \"p999\": %u, \"max\": %u}}\n", percentile(.5), percentile(.9),
            percentile(.99), percentile(.999), percentile(1));
    fclose(f);
    return 0;
}
