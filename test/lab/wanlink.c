/*
 * wanlink: a wide-area link between the network namespaces of two hosts.
 *
 * Each namespace gets a TUN device `wan0`; this process carries the packets across, with a rate and a tail-drop queue
 * per direction, half the round trip each way, and random loss. It counts IP bytes by connection and answers on a unix
 * socket (one line in, one JSON line out): `stats`, `reset`, `set rtt-ms=50 mbit=100 loss=0.01 cut=1`.
 *
 * Key idea: the delay is the same for all packets of a direction, so a byte ring in order of arrival is the whole
 * queue. Under load the loop sleeps a moment and then moves packets by the hundred; when idle it waits in ppoll.
 * It deliberately knows nothing of TCP beyond the ports, does not reorder, and does no segmentation offload.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PACKET_MAX 2048u                /* mtu 1500 and room */
#define RING_BYTES (96u << 20)          /* 100 ms + 300 ms at 1 Gbit/s is 50 MB */
#define BATCH_MAX 512                   /* packets read from one device in one round */
#define BUSY_PACKETS 8                  /* from so many packets a round on, sleep instead of poll */
#define BUSY_SLEEP_NS 150000            /* what a packet may be late because of that */
#define GUARD_MAX 8

static void die(const char *what) {
  fprintf(stderr, "wanlink: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- connections -------------------------------------------------------------------------------------------- */

struct key {
  uint8_t a[16], b[16];
  uint16_t a_port, b_port;
  uint8_t proto, version;
};

struct connection {
  struct key key;
  int used;
  uint64_t bytes[2], packets[2], first_ns, last_ns;
  uint64_t data_ns[2]; /* when the last TCP segment with data arrives at its other end */
};

static struct connection *table;
static size_t table_size, table_used;

static struct connection *slot_of(struct connection *in, size_t size, const struct key *key) {
  const uint8_t *bytes = (const uint8_t *)key;
  uint64_t hash = 1469598103934665603u;
  for (size_t i = 0; i < sizeof *key; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
  size_t at = (hash ^ (hash >> 32)) & (size - 1);
  while (in[at].used && memcmp(&in[at].key, key, sizeof *key)) at = (at + 1) & (size - 1);
  return &in[at];
}

static void table_clear(void) {
  free(table);
  table_size = 4096;
  table_used = 0;
  table = calloc(table_size, sizeof *table);
  if (!table) die("memory for connections");
}

static void table_grow(void) {
  size_t size = table_size * 2;
  struct connection *bigger = calloc(size, sizeof *bigger);
  if (!bigger) die("memory for connections");
  for (size_t i = 0; i < table_size; i++)
    if (table[i].used) *slot_of(bigger, size, &table[i].key) = table[i];
  free(table);
  table = bigger;
  table_size = size;
}

/* `way` is 0 from a to b, 1 from b to a; the key always names a's end first, so both ways meet in one entry. */
static void count(const uint8_t *packet, size_t length, int way, uint64_t now, uint64_t due) {
  struct key key;
  memset(&key, 0, sizeof key);
  const uint8_t *source, *target;
  size_t address, ports;
  int fragment = 0, data = 0;
  key.version = packet[0] >> 4;
  if (key.version == 4 && length >= 20) {
    source = packet + 12, target = packet + 16, address = 4;
    key.proto = packet[9];
    ports = (size_t)(packet[0] & 15) * 4;
    fragment = ((packet[6] & 0x1f) | packet[7]) != 0;
  } else if (key.version == 6 && length >= 40) {
    source = packet + 8, target = packet + 24, address = 16;
    key.proto = packet[6];
    ports = 40;
  } else {
    return;
  }
  memcpy(way ? key.b : key.a, source, address);
  memcpy(way ? key.a : key.b, target, address);
  if ((key.proto == 6 || key.proto == 17) && !fragment && length >= ports + 4) {
    uint16_t from = (uint16_t)(packet[ports] << 8 | packet[ports + 1]);
    uint16_t to = (uint16_t)(packet[ports + 2] << 8 | packet[ports + 3]);
    key.a_port = way ? to : from;
    key.b_port = way ? from : to;
    data = key.proto == 6 && length >= ports + 20 && length > ports + (size_t)(packet[ports + 12] >> 4) * 4;
  }
  struct connection *c = slot_of(table, table_size, &key);
  if (!c->used) {
    if (++table_used * 2 > table_size) {
      table_grow();
      c = slot_of(table, table_size, &key);
    }
    c->used = 1;
    c->key = key;
    c->first_ns = now;
  }
  c->bytes[way] += length;
  c->packets[way]++;
  c->last_ns = now;
  if (data) c->data_ns[way] = due;
}

/* ---- the link ----------------------------------------------------------------------------------------------- */

struct record {
  uint64_t due;
  uint32_t length; /* 0: the rest of the ring up to its end is unused */
  uint32_t lost;   /* travels and is counted, but does not arrive */
};

struct way {
  int in, out;
  uint8_t *ring;
  size_t head, tail; /* head == tail: empty */
  double mbit, ns_per_byte;
  uint64_t free_ns, last_due;
  uint64_t bytes, packets, dropped, lost;
};

static struct way ways[2];
static double rtt_ms = 50, loss = 0, queue_ms = 100;
static int cut = 0;
static uint64_t reset_ns;

static uint64_t random_state = 0x9e3779b97f4a7c15u;
static double random_unit(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (double)(random_state >> 11) / 9007199254740992.0;
}

/* Room for one record and packet, contiguous; NULL when the ring is full. */
static uint8_t *ring_room(struct way *w) {
  size_t need = sizeof(struct record) + PACKET_MAX;
  if (w->head == w->tail) w->head = w->tail = 0;
  if (w->tail >= w->head) {
    if (w->tail + need + sizeof(struct record) <= RING_BYTES) return w->ring + w->tail;
    if (need >= w->head) return NULL;
    ((struct record *)(w->ring + w->tail))->length = 0;
    w->tail = 0;
    return w->ring;
  }
  return w->tail + need < w->head ? w->ring + w->tail : NULL;
}

static int take(int which) {
  struct way *w = &ways[which];
  int taken = 0;
  uint64_t now = now_ns(), queue_ns = (uint64_t)(queue_ms * 1e6), half_ns = (uint64_t)(rtt_ms * 5e5);
  static uint8_t spare[PACKET_MAX];
  for (; taken < BATCH_MAX; taken++) {
    uint8_t *room = ring_room(w);
    uint8_t *packet = room ? room + sizeof(struct record) : spare;
    ssize_t length = read(w->in, packet, PACKET_MAX);
    if (length <= 0) break;
    if ((taken & 15) == 15) now = now_ns();
    uint64_t start = w->free_ns > now ? w->free_ns : now;
    if (!room || cut || start - now > queue_ns) {
      w->dropped++;
      continue;
    }
    w->free_ns = start + (uint64_t)((double)length * w->ns_per_byte);
    w->bytes += (uint64_t)length;
    w->packets++;
    struct record *record = (struct record *)room;
    record->due = w->free_ns + half_ns;
    if (record->due < w->last_due) record->due = w->last_due; /* the round trip was made shorter: keep the order */
    w->last_due = record->due;
    count(packet, (size_t)length, which, now, record->due);
    record->length = (uint32_t)length;
    record->lost = loss > 0 && random_unit() < loss;
    w->lost += record->lost;
    w->tail += (sizeof *record + (size_t)length + 7) & ~(size_t)7;
  }
  return taken;
}

static struct record *first(struct way *w) {
  if (w->head == w->tail) return NULL;
  struct record *record = (struct record *)(w->ring + w->head);
  if (record->length == 0) {
    w->head = 0;
    if (w->head == w->tail) return NULL;
    record = (struct record *)w->ring;
  }
  return record;
}

static void deliver(struct way *w) {
  struct record *record;
  uint64_t now = now_ns();
  while ((record = first(w)) && record->due <= now) {
    if (!record->lost && !cut && write(w->out, record + 1, record->length) < 0 && errno == EAGAIN) w->dropped++;
    w->head += (sizeof *record + record->length + 7) & ~(size_t)7;
  }
}

/* ---- control ------------------------------------------------------------------------------------------------ */

static void set_rate(struct way *w, double mbit) {
  w->mbit = mbit;
  w->ns_per_byte = 8000.0 / mbit;
}

static void endpoint(char *text, size_t size, const struct key *key, int b) {
  char address[INET6_ADDRSTRLEN];
  inet_ntop(key->version == 4 ? AF_INET : AF_INET6, b ? key->b : key->a, address, sizeof address);
  snprintf(text, size, key->version == 4 ? "%s:%u" : "[%s]:%u", address, b ? key->b_port : key->a_port);
}

static void answer_stats(FILE *out) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e3 +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e3;
  fprintf(out, "{\"version\":1,\"elapsedMs\":%.3f,\"cpuMs\":%.3f,", (double)(now_ns() - reset_ns) / 1e6, cpu);
  fprintf(out, "\"link\":{\"rttMs\":%g,\"mbitAB\":%g,\"mbitBA\":%g,\"loss\":%g,\"queueMs\":%g,\"cut\":%s},", rtt_ms,
          ways[0].mbit, ways[1].mbit, loss, queue_ms, cut ? "true" : "false");
  fprintf(out, "\"total\":{\"bytesAB\":%lu,\"bytesBA\":%lu,\"packetsAB\":%lu,\"packetsBA\":%lu,", ways[0].bytes,
          ways[1].bytes, ways[0].packets, ways[1].packets);
  fprintf(out, "\"droppedAB\":%lu,\"droppedBA\":%lu,\"lostAB\":%lu,\"lostBA\":%lu},\"connections\":[",
          ways[0].dropped, ways[1].dropped, ways[0].lost, ways[1].lost);
  int some = 0;
  for (size_t i = 0; i < table_size; i++) {
    const struct connection *c = &table[i];
    if (!c->used) continue;
    char a[64], b[64], proto[8];
    endpoint(a, sizeof a, &c->key, 0);
    endpoint(b, sizeof b, &c->key, 1);
    snprintf(proto, sizeof proto, "%u", c->key.proto);
    fprintf(out, "%s{\"proto\":\"%s\",\"a\":\"%s\",\"b\":\"%s\",\"bytesAB\":%lu,\"bytesBA\":%lu,\"packets\":%lu,",
            some++ ? "," : "", c->key.proto == 6 ? "tcp" : c->key.proto == 17 ? "udp" : proto, a, b, c->bytes[0],
            c->bytes[1], c->packets[0] + c->packets[1]);
    fprintf(out, "\"firstMs\":%.3f,\"lastMs\":%.3f", (double)(c->first_ns - reset_ns) / 1e6,
            (double)(c->last_ns - reset_ns) / 1e6);
    for (int way = 0; way < 2; way++) {
      fprintf(out, ",\"data%s\":", way ? "BAMs" : "ABMs");
      if (c->data_ns[way]) fprintf(out, "%.3f", (double)(c->data_ns[way] - reset_ns) / 1e6);
      else fprintf(out, "null");
    }
    fprintf(out, "}");
  }
  fprintf(out, "]}\n");
}

static const char *apply(char *words) {
  for (char *save, *word = strtok_r(words, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
    char *value = strchr(word, '='), *end;
    if (!value) return "expected name=value";
    *value++ = 0;
    double number = strtod(value, &end);
    if (end == value || *end || !(number >= 0)) return "expected a number that is not negative";
    if (!strcmp(word, "rtt-ms") && number <= 10000) rtt_ms = number;
    else if (!strcmp(word, "queue-ms") && number > 0) queue_ms = number;
    else if (!strcmp(word, "loss") && number <= 1) loss = number;
    else if (!strcmp(word, "cut")) cut = number != 0;
    else if (!strcmp(word, "mbit") && number > 0) set_rate(&ways[0], number), set_rate(&ways[1], number);
    else if (!strcmp(word, "mbit-ab") && number > 0) set_rate(&ways[0], number);
    else if (!strcmp(word, "mbit-ba") && number > 0) set_rate(&ways[1], number);
    else return "unknown name or value out of range";
  }
  return NULL;
}

static void serve(int listener) {
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
  if (fd < 0) return;
  struct timeval limit = {.tv_usec = 300000}; /* the link stands still while this is answered */
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  char line[512];
  size_t have = 0;
  while (have < sizeof line - 1 && !memchr(line, '\n', have)) {
    ssize_t n = read(fd, line + have, sizeof line - 1 - have);
    if (n <= 0) break;
    have += (size_t)n;
  }
  line[have] = 0;
  line[strcspn(line, "\r\n")] = 0;
  FILE *out = fdopen(fd, "w");
  if (!out) {
    close(fd);
    return;
  }
  const char *wrong = NULL;
  if (!strcmp(line, "stats")) {
    answer_stats(out);
  } else if (!strcmp(line, "reset")) {
    table_clear();
    for (int i = 0; i < 2; i++) ways[i].bytes = ways[i].packets = ways[i].dropped = ways[i].lost = 0;
    reset_ns = now_ns();
    fprintf(out, "{\"version\":1,\"ok\":true}\n");
  } else if (!strncmp(line, "set ", 4)) {
    wrong = apply(line + 4);
    if (!wrong) fprintf(out, "{\"version\":1,\"ok\":true}\n");
  } else {
    wrong = "unknown command, expected stats, reset or set";
  }
  if (wrong) fprintf(out, "{\"version\":1,\"error\":\"%s\"}\n", wrong);
  fclose(out);
}

/* ---- start -------------------------------------------------------------------------------------------------- */

static int device_in(const char *ns, const char *v4, const char *v4_peer, const char *v6) {
  int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), there = open(ns, O_RDONLY | O_CLOEXEC);
  if (home < 0 || there < 0) die(ns);
  if (setns(there, CLONE_NEWNET)) die("setns");
  int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) die("/dev/net/tun");
  struct ifreq request;
  memset(&request, 0, sizeof request);
  strcpy(request.ifr_name, "wan0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (ioctl(fd, TUNSETIFF, &request)) die("TUNSETIFF wan0");
  char command[512];
  snprintf(command, sizeof command,
           "ip link set wan0 addrgenmode none && ip link set wan0 mtu 1500 txqueuelen 1000 up && ip addr add %s peer %s dev wan0 && "
           "ip addr add %s/64 dev wan0 nodad",
           v4, v4_peer, v6);
  if (system(command)) {
    fprintf(stderr, "wanlink: could not configure wan0: %s\n", command);
    exit(1);
  }
  if (setns(home, CLONE_NEWNET)) die("setns back");
  close(home);
  close(there);
  return fd;
}

int main(int argc, char **argv) {
  const char *ns[2] = {NULL, NULL}, *path = NULL;
  int guards[GUARD_MAX], guard_count = 0;
  set_rate(&ways[0], 100);
  set_rate(&ways[1], 100);
  for (int i = 1; i < argc; i++) {
    const char *value = i + 1 < argc ? argv[i + 1] : "";
    if (!strcmp(argv[i], "--a-ns")) ns[0] = argv[++i];
    else if (!strcmp(argv[i], "--b-ns")) ns[1] = argv[++i];
    else if (!strcmp(argv[i], "--socket")) path = argv[++i];
    else if (!strcmp(argv[i], "--guard") && guard_count < GUARD_MAX) {
      /* When standard input ends (whoever started the lab is gone), these processes are killed. */
      int fd = (int)syscall(SYS_pidfd_open, atoi(argv[++i]), 0);
      if (fd < 0) die("pidfd_open of a guarded process");
      guards[guard_count++] = fd;
    } else {
      char words[256];
      snprintf(words, sizeof words, "%s=%s", !strncmp(argv[i], "--", 2) ? argv[i] + 2 : argv[i], value);
      const char *wrong = apply(words);
      if (wrong) {
        fprintf(stderr, "wanlink: %s %s: %s\n", argv[i], value, wrong);
        return 2;
      }
      i++;
    }
  }
  if (!ns[0] || !ns[1] || !path) {
    fprintf(stderr, "usage: wanlink --a-ns FILE --b-ns FILE --socket PATH [--rtt-ms N] [--mbit N] [--loss P] "
                    "[--queue-ms N] [--guard PID]...\n");
    return 2;
  }
  prctl(PR_SET_TIMERSLACK, 10000);
  signal(SIGPIPE, SIG_IGN);
  random_state ^= now_ns();
  int a = device_in(ns[0], "10.8.0.1", "10.8.0.2", "fd08::1"), b = device_in(ns[1], "10.8.0.2", "10.8.0.1", "fd08::2");
  ways[0].in = ways[1].out = a;
  ways[1].in = ways[0].out = b;
  for (int i = 0; i < 2; i++) {
    ways[i].ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (ways[i].ring == MAP_FAILED) die("memory for a queue");
  }
  table_clear();
  reset_ns = now_ns();

  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) {
    fprintf(stderr, "wanlink: the socket path is too long: %s\n", path);
    return 2;
  }
  strcpy(address.sun_path, path);
  unlink(path);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) die(path);

  struct pollfd fds[4] = {{.fd = a, .events = POLLIN},
                          {.fd = b, .events = POLLIN},
                          {.fd = listener, .events = POLLIN},
                          {.fd = guard_count ? 0 : -1, .events = POLLIN}};
  for (unsigned round = 0;; round++) {
    deliver(&ways[0]);
    deliver(&ways[1]);
    int taken = take(0) + take(1);
    struct timespec wait = {0, 0}, *limit = &wait;
    if (taken >= BUSY_PACKETS) {
      wait.tv_nsec = BUSY_SLEEP_NS;
      nanosleep(&wait, NULL);
      if (round % 64) continue;
      wait.tv_nsec = 0;
    } else if (!taken) {
      struct record *x = first(&ways[0]), *y = first(&ways[1]);
      if (!x && !y) {
        limit = NULL;
      } else {
        uint64_t due = x && (!y || x->due < y->due) ? x->due : y->due, now = now_ns();
        uint64_t left = due > now ? due - now : 0;
        wait.tv_sec = (time_t)(left / 1000000000u);
        wait.tv_nsec = (long)(left % 1000000000u);
      }
    }
    if (ppoll(fds, 4, limit, NULL) <= 0) continue;
    if (fds[2].revents) serve(listener);
    if (fds[3].revents) {
      char ignored[64];
      if (read(0, ignored, sizeof ignored) <= 0) {
        for (int i = 0; i < guard_count; i++) syscall(SYS_pidfd_send_signal, guards[i], SIGKILL, NULL, 0);
        return 0;
      }
    }
    if ((fds[0].revents | fds[1].revents) & (POLLERR | POLLNVAL)) usleep(1000);
  }
}
