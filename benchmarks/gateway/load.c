// Closed-loop HTTP load for measuring gateways: CONNECTIONS clients, each sending its next request
// when it has the whole answer to the last one.
//
//   load PORT PATH CONNECTIONS WARM_SECONDS SECONDS BODY [HEADER: VALUE]
//
// Prints one line of JSON: requests, errors (a status other than 200, a cut answer), latency from
// the first byte sent to the last byte read; for event streams also the number of events, the time
// to the first and the age of each, from the "t=NANOSECONDS;" that the stub puts in. Times in
// microseconds.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BINS = 4000000, HEAD = 8192, LINE = 8192 };  // bins of 1 us

struct histogram { uint32_t bins[BINS]; uint64_t count; };

struct client {
  int fd, status, chunked, events;
  enum { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, AFTER_CHUNK, IN_TRAILER } state;
  uint64_t sent;
  long left;                  // bytes of the body or chunk still to come
  char head[HEAD], line[LINE];
  int head_length, line_length;
};

static struct histogram latency, first_event, age;
static uint64_t errors, warm_until;
static int poll_fd, port;
static char *request;
static size_t request_length;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void add(struct histogram *h, uint64_t ns, uint64_t now) {
  if (now < warm_until) return;
  uint64_t us = ns / 1000;
  h->bins[us < BINS ? us : BINS - 1]++;
  h->count++;
}

static long quantile(struct histogram *h, double q) {
  uint64_t seen = 0;
  for (long i = 0; i < BINS; i++) if ((seen += h->bins[i]) > q * h->count) return i;
  return -1;
}

static void send_request(struct client *c) {
  c->state = IN_HEAD, c->head_length = c->line_length = c->events = 0;
  c->sent = now_ns();
  if (send(c->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) errors++;
}

static void dial(struct client *c) {
  int one = 1;
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->fd, (void *)&a, sizeof a)) { perror("load: connect"); exit(1); }
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event e = {EPOLLIN, {.ptr = c}};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void finish(struct client *c, uint64_t now) {
  if (c->status != 200) { if (now >= warm_until) errors++; }
  else add(&latency, now - c->sent, now);
  send_request(c);
}

// Body bytes, looked at line by line for the time stamps of events.
static void take_body(struct client *c, const char *p, long n, uint64_t now) {
  for (; n; p++, n--) {
    if (*p != '\n') { if (c->line_length < LINE - 1) c->line[c->line_length++] = *p; continue; }
    c->line[c->line_length] = 0;
    c->line_length = 0;
    char *stamp = strstr(c->line, "t=");
    if (strncmp(c->line, "data:", 5) || !stamp) continue;
    if (!c->events++) add(&first_event, now - c->sent, now);
    add(&age, now - strtoull(stamp + 2, NULL, 10), now);
  }
}

static void take_head(struct client *c) {
  c->head[c->head_length] = 0;
  char *length = strcasestr(c->head, "\r\ncontent-length:");
  c->status = atoi(c->head + 9);
  c->left = length ? atol(length + 17) : 0;
  c->state = strcasestr(c->head, "\r\ntransfer-encoding: chunked") ? IN_SIZE : IN_BODY;
}

static void take(struct client *c, const char *p, long n, uint64_t now) {
  while (n > 0) switch (c->state) {
    case IN_HEAD:
      if (c->head_length < HEAD - 1) c->head[c->head_length++] = *p;
      p++, n--;
      if (c->head_length < 4 || memcmp(c->head + c->head_length - 4, "\r\n\r\n", 4)) break;
      take_head(c);
      if (c->state == IN_BODY && !c->left) { finish(c, now); return; }
      break;
    case IN_BODY: case IN_CHUNK: {
      long k = n < c->left ? n : c->left;
      take_body(c, p, k, now);
      p += k, n -= k;
      if (c->left -= k) break;
      if (c->state == IN_BODY) { finish(c, now); return; }
      c->state = AFTER_CHUNK;
      break;
    }
    case AFTER_CHUNK:
      if (*p == '\n') c->state = IN_SIZE, c->line_length = 0, c->head_length = 0;
      p++, n--;
      break;
    case IN_SIZE:
      if (c->head_length == 0) c->left = 0, c->head_length = 1;
      if (*p == '\n') c->head_length = 0, c->state = c->left ? IN_CHUNK : IN_TRAILER;
      else if (*p != '\r') c->left = 16 * c->left + (*p <= '9' ? *p - '0' : (*p | 32) - 'a' + 10);
      p++, n--;
      break;
    case IN_TRAILER:
      if (*p == '\n') { finish(c, now); return; }
      p++, n--;
  }
}

int main(int argc, char **argv) {
  if (argc < 7) return fprintf(stderr, "usage: load PORT PATH CONNECTIONS WARM_S SECONDS BODY [HEADER]\n"), 2;
  port = atoi(argv[1]);
  int count = atoi(argv[3]);
  request_length = asprintf(&request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n%s%s"
                            "Content-Length: %zu\r\n\r\n%s", argv[2], argc > 7 ? argv[7] : "", argc > 7 ? "\r\n" : "",
                            strlen(argv[6]), argv[6]);
  poll_fd = epoll_create1(0);
  struct client *clients = calloc(count, sizeof *clients);
  uint64_t begin = now_ns(), now = begin;
  warm_until = begin + atof(argv[4]) * 1e9;
  uint64_t end = warm_until + atof(argv[5]) * 1e9;
  for (int i = 0; i < count; i++) {
    dial(&clients[i]), send_request(&clients[i]);
    usleep(100);  // streams with phases of their own
  }
  static char buffer[1 << 18];
  struct epoll_event ready[256];
  while ((now = now_ns()) < end) {
    int n = epoll_wait(poll_fd, ready, 256, 50);
    for (int i = 0; i < n; i++) {
      struct client *c = ready[i].data.ptr;
      ssize_t r = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
      if (r > 0) take(c, buffer, r, now_ns());
      else if (r == 0 || errno != EAGAIN) {
        if (now >= warm_until) errors++;
        close(c->fd), dial(c), send_request(c);
      }
    }
  }
  double s = (now - warm_until) / 1e9;
  printf("{\"requests\":%lu,\"errors\":%lu,\"seconds\":%.3f,\"rps\":%.1f,\"p50_us\":%ld,\"p99_us\":%ld,"
         "\"events\":%lu,\"first_event_p50_us\":%ld,\"first_event_p99_us\":%ld,\"age_p50_us\":%ld,\"age_p99_us\":%ld}\n",
         latency.count, errors, s, latency.count / s, quantile(&latency, .5), quantile(&latency, .99), age.count,
         quantile(&first_event, .5), quantile(&first_event, .99), quantile(&age, .5), quantile(&age, .99));
}
