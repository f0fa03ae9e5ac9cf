// A server that costs next to nothing, for measuring what a gateway in front of it costs.
//
//   stub PORT
//
// One thread, epoll. POST answers at once with a completion of fixed text, or, if the body says
// "stream": true, with events. Words in the body (in the prompt, say) steer a stream:
//   CHUNKS=n   how many events (64)
//   PACE=us    microseconds between two events of one stream (0: all at once)
// Every event holds "t=NANOSECONDS;", the monotonic time of its sending, so that a client on the
// same machine can tell how long it took to arrive. With the header `x-stream-checkpoint: 1` events
// carry the checkpoint comments of this stack. GET /status is a heartbeat of this stack, GET
// */models a model list; the model is called "stub".
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
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_BODY = 32 << 20, FIRST_BUFFER = 64 << 10 };

struct connection {
  int fd;
  int left;                         // events still to be sent
  int chat, checkpoints;            // shape of the stream
  uint64_t due, pace;               // nanoseconds
  char *in, *out;
  size_t in_length, in_size, out_length, out_size;
  struct connection *next, **link;  // list of paced streams
};

static int poll_fd, timer_fd;
static struct connection *streams;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void watch(struct connection *c, uint32_t events) {
  struct epoll_event e = {events, {.ptr = c}};
  epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static void put(struct connection *c, const char *data, size_t n) {
  if (!c->out_length) {
    ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return;  // the reader notices
    if (sent > 0) data += sent, n -= sent;
    if (!n) return;
    watch(c, EPOLLIN | EPOLLOUT);
  }
  if (c->out_length + n > c->out_size) c->out = realloc(c->out, c->out_size = 2 * (c->out_length + n));
  memcpy(c->out + c->out_length, data, n);
  c->out_length += n;
}

static void flush(struct connection *c) {
  ssize_t sent = send(c->fd, c->out, c->out_length, MSG_NOSIGNAL);
  if (sent <= 0) return;
  memmove(c->out, c->out + sent, c->out_length -= sent);
  if (!c->out_length) watch(c, EPOLLIN);
}

static void put_event(struct connection *c) {
  char event[512], framed[600];
  const char *finish = c->left == 1 ? "\"stop\"" : "null";
  int n = c->checkpoints ? sprintf(event, ": tokens 0 %d%s\n", c->left, c->left == 1 ? " ." : "") : 0;
  n += sprintf(event + n, c->chat
      ? "data: {\"id\":\"chatcmpl-stub\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"stub\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" t=%llu;\"},\"logprobs\":null,\"finish_reason\":%s}]}\n\n"
      : "data: {\"choices\":[{\"text\":\" t=%llu;\",\"index\":0,\"finish_reason\":%s}]}\n\n",
      (unsigned long long)now_ns(), finish);
  int m = sprintf(framed, "%x\r\n%s\r\n", n, event);
  put(c, framed, m);
  if (--c->left == 0) {
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    put(c, end, sizeof end - 1);
  }
}

static void unlink_stream(struct connection *c) {
  if (!c->link) return;
  if ((*c->link = c->next)) c->next->link = c->link;
  c->link = NULL;
}

static void set_timer(void) {
  uint64_t first = UINT64_MAX;
  for (struct connection *c = streams; c; c = c->next) if (c->due < first) first = c->due;
  struct itimerspec t = {0};
  if (streams) t.it_value = (struct timespec){first / 1000000000, first % 1000000000};
  timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
}

static void send_due(void) {
  uint64_t now = now_ns();
  for (struct connection *c = streams, *next; c; c = next) {
    next = c->next;
    if (c->due > now) continue;
    put_event(c);
    c->due += c->pace;
    if (!c->left) unlink_stream(c);
  }
  set_timer();
}

static long word(const char *body, size_t n, const char *name, long otherwise) {
  const char *at = memmem(body, n, name, strlen(name));
  return at ? atol(at + strlen(name)) : otherwise;
}

static void answer_whole(struct connection *c, const char *body) {
  char out[2048];
  int n = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-server-load: 0\r\n"
                  "Content-Length: %zu\r\n\r\n%s", strlen(body), body);
  put(c, out, n);
}

static void answer_get(struct connection *c, const char *path) {
  if (!strcmp(path, "/status"))
    answer_whole(c, "{\"service\":\"continuous_batching\",\"state\":\"ready\",\"model_id\":\"stub\",\"version\":\"0\","
                 "\"uptime_seconds\":1.0,\"load\":{\"running\":0,\"pending_tokens\":0}}");
  else if (strstr(path, "/models"))
    answer_whole(c, "{\"object\":\"list\",\"data\":[{\"id\":\"stub\",\"object\":\"model\",\"created\":1,\"owned_by\":\"stub\"}]}");
  else
    answer_whole(c, "{\"status\":\"ok\"}");
}

static void answer_post(struct connection *c, const char *head, const char *path, const char *body, size_t n) {
  c->chat = strstr(path, "chat") != NULL;
  if (!memmem(body, n, "\"stream\":true", 13) && !memmem(body, n, "\"stream\": true", 14)) {
    answer_whole(c, c->chat
        ? "{\"id\":\"chatcmpl-stub\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"stub\",\"choices\":[{"
          "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over the lazy dog, and "
          "then once more.\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":16,"
          "\"completion_tokens\":20,\"total_tokens\":36}}"
        : "{\"choices\":[{\"text\":\"The quick brown fox jumps over the lazy dog, and then once more.\",\"index\":0,"
          "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":20,\"total_tokens\":36}}");
    return;
  }
  static const char start[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                              "Transfer-Encoding: chunked\r\n\r\n";
  put(c, start, sizeof start - 1);
  c->checkpoints = strcasestr(head, "\r\nx-stream-checkpoint: 1") != NULL;
  c->left = word(body, n, "CHUNKS=", 64);
  c->pace = word(body, n, "PACE=", 0) * 1000ull;
  if (!c->pace) { while (c->left) put_event(c); return; }
  c->due = now_ns();
  if ((c->next = streams)) streams->link = &c->next;
  streams = c, c->link = &streams;
  send_due();
}

// Answer every complete request in the buffer; -1 when the connection is to be dropped.
static int take_requests(struct connection *c) {
  size_t done = 0;
  for (;;) {
    char *head = c->in + done, *end = memmem(head, c->in_length - done, "\r\n\r\n", 4), path[128];
    if (!end) break;
    end[2] = 0;  // the head becomes a string
    char *length = strcasestr(head, "\r\ncontent-length:");
    size_t body = length ? strtoul(length + 17, NULL, 10) : 0, head_length = end + 4 - head;
    if (body > MAX_BODY || strcasestr(head, "\r\ntransfer-encoding:")) return -1;
    if (done + head_length + body > c->in_length) { end[2] = '\r'; break; }
    if (sscanf(head, "%*s %127s", path) != 1) return -1;
    if (*head == 'P') answer_post(c, head, path, end + 4, body); else answer_get(c, path);
    done += head_length + body;
  }
  memmove(c->in, c->in + done, c->in_length -= done);
  return 0;
}

static int receive(struct connection *c) {
  for (;;) {
    if (c->in_size - c->in_length < FIRST_BUFFER / 2)
      c->in = realloc(c->in, c->in_size = c->in_size ? 2 * c->in_size : FIRST_BUFFER);
    ssize_t n = recv(c->fd, c->in + c->in_length, c->in_size - c->in_length - 1, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) return -1;
    c->in_length += n;
    if (take_requests(c)) return -1;
  }
}

static void drop(struct connection *c) {
  unlink_stream(c);
  close(c->fd);
  free(c->in), free(c->out), free(c);
}

static void accept_all(int listener) {
  int fd, one = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    struct epoll_event e = {EPOLLIN, {.ptr = c}};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &e);
  }
}

int main(int argc, char **argv) {
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1024)) return perror("stub"), 1;
  poll_fd = epoll_create1(0);
  timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event e = {EPOLLIN, {.ptr = &listener}}, ready[256];
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &e);
  e.data.ptr = &timer_fd;
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &e);
  for (;;) {
    int n = epoll_wait(poll_fd, ready, 256, -1);
    for (int i = 0; i < n; i++) {
      uint64_t ticks;
      struct connection *c = ready[i].data.ptr;
      if (ready[i].data.ptr == &listener) accept_all(listener);
      else if (ready[i].data.ptr == &timer_fd) { if (read(timer_fd, &ticks, sizeof ticks) > 0) send_due(); }
      else {
        if (ready[i].events & EPOLLOUT && c->out_length) flush(c);
        if (ready[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && receive(c)) drop(c);
      }
    }
  }
}
