/*
 * init of the tiny guest: the whole user space of a virtual machine that is up in two seconds and writes for ever.
 *
 * It loads the virtio modules, then writes numbered records to /dev/vda and says "D n" on the first serial port only
 * after the fsync that covers record n has returned: a checker can so hold the disk to what the guest was told.
 * A second process sends a counter on the second serial port every 5 ms (swam.beat=MS): the lab stamps these heartbeats.
 *
 * Kernel command line: swam.write=RECORD_BYTES,INTERVAL_MS,PATTERN,BATCH,AREA_OFFSET,AREA_BYTES with PATTERN `sequential`,
 * `scattered`, `pages` (a database's, of 8 KiB, made anew at every boot) or `idle`, and swam.dirty=MIB,MIB_PER_S or swam.hammer=MIB for memory that changes and is held to what was
 * written there ("F memory" if it is not). The layout of a record is in records.ts.
 * swam.disk=NAME, any number of times: the same records on that disk too, told as "Db n" for vdb. swam.fs=NAME,TYPE: the
 * disk's file system is mounted and record n lies in its file `n mod FILES`, renamed into place; told in the same way.
 * With swam.control it takes lines on a third serial port: "off" powers the machine off, "qcow2 PATH" writes the header of
 * a qcow2 image whose backing file is PATH over the start of the disk, as a hostile guest would. "C LINE" says that it is done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096u
#define BEAT_MS 5
#define MAGIC "SWAMREC1"
/* As FILE_PLAN in disks.ts has it. */
#define FILES 64
#define FILE_BYTES 65536

static int console = 2;

static void say(const char *format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (write(console, line, (size_t)length) < 0) return;
}

static void fail(const char *what) {
  say("F %s: %s\n", what, strerror(errno));
  for (;;) pause();
}

static int serial(const char *path) {
  int fd = open(path, O_RDWR | O_NOCTTY);
  if (fd < 0) return -1;
  struct termios settings;
  if (!tcgetattr(fd, &settings)) {
    cfmakeraw(&settings);
    cfsetspeed(&settings, B115200);
    tcsetattr(fd, TCSANOW, &settings);
  }
  return fd;
}

static void load_modules(void) {
  FILE *list = fopen("/modules/order", "r");
  char name[128], path[256];
  while (list && fscanf(list, "%127s", name) == 1) {
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST)) fail(path);
    close(fd);
  }
}

static void beat(long every_ns) {
  int fd = serial("/dev/ttyS1");
  if (fd < 0) fail("/dev/ttyS1");
  struct sched_param high = {.sched_priority = 50};
  sched_setscheduler(0, SCHED_FIFO, &high);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (unsigned n = 1;; n++) {
    char line[16];
    int length = snprintf(line, sizeof line, "%u\n", n);
    if (write(fd, line, (size_t)length) < 0) fail("write of a heartbeat");
    next.tv_nsec += every_ns;
    if (next.tv_nsec >= 1000000000) next.tv_nsec -= 1000000000, next.tv_sec++;
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL)) {}
    struct timespec now; /* after a long stop do not catch up with a burst */
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec > next.tv_sec + 1) next = now;
  }
}

static uint32_t seed_of(uint64_t n, uint32_t index) {
  uint32_t x = (uint32_t)n * 2654435761u ^ (uint32_t)(n >> 32) * 2246822519u ^ (index + 1) * 3266489917u;
  x ^= x >> 15;
  x *= 2246822519u;
  x ^= x >> 13;
  return x ? x : 1;
}

static void fill(uint8_t *record, uint32_t bytes, uint64_t n) {
  for (uint32_t index = 0; index * BLOCK < bytes; index++) {
    uint8_t *block = record + index * BLOCK;
    memcpy(block, MAGIC, 8);
    memcpy(block + 8, &n, 8);
    memcpy(block + 16, &index, 4);
    uint32_t x = seed_of(n, index);
    memcpy(block + 20, &x, 4);
    for (uint32_t at = 24; at < BLOCK; at += 4) {
      x ^= x << 13;
      x ^= x >> 17;
      x ^= x << 5;
      memcpy(block + at, &x, 4);
    }
  }
}

/* Numbers go on where an earlier life of this disk stopped: an old record must never look newer than a new one. */
static uint64_t newest_on(const char *path, uint64_t offset, uint64_t area) {
  static uint8_t piece[1 << 20] __attribute__((aligned(4096)));
  int fd = open(path, O_RDONLY | O_DIRECT); /* or the memory to migrate would be mostly page cache */
  if (fd < 0) fail(path);
  uint64_t newest = 0;
  for (uint64_t at = 0; at < area;) {
    uint64_t want = area - at < sizeof piece ? area - at : sizeof piece;
    ssize_t have = pread(fd, piece, want, (off_t)(offset + at));
    if (have <= 0) fail("read of the record area");
    for (ssize_t i = 0; i + (ssize_t)BLOCK <= have; i += BLOCK) {
      uint64_t n;
      if (memcmp(piece + i, MAGIC, 8)) continue;
      memcpy(&n, piece + i + 8, 8);
      if (n > newest) newest = n;
    }
    at += (uint64_t)have;
  }
  close(fd);
  return newest;
}

/*
 * Memory that changes, `rate` MiB a second, and is held to what was written there last: a page that a migration lost, or
 * that came as it was a moment before, is told.
 */
static void dirty(unsigned mib, unsigned rate) {
  size_t words = ((size_t)mib << 20) / sizeof(uint32_t), at = 0;
  uint32_t pass = 0;
  uint32_t *memory = mmap(NULL, words * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) fail("memory to dirty");
  for (;;) {
    for (unsigned page = 0; page < rate * 256 / 50; page++) {
      for (unsigned word = 0; word < BLOCK / 4; word += 16, at += 16) {
        uint32_t before = pass ? (pass * (uint32_t)words + (uint32_t)at) * 2654435761u : 0;
        if (memory[at] != before) {
          say("F memory: word %zu of pass %u is %08x, %08x was written\n", at, pass, memory[at], before);
          for (;;) pause();
        }
        memory[at] = ((pass + 1) * (uint32_t)words + (uint32_t)at) * 2654435761u;
      }
      if (at == words) at = 0, pass++;
    }
    usleep(20000);
  }
}

#define RING 16u      /* pages */
#define TURNS 20000u /* some milliseconds of stores without a system call */

/*
 * Stores that come back to the same few pages for some milliseconds and then leave them alone for seconds: what shows a
 * hypervisor that believes a page to be sent although it was written since. Each page is held to the last store.
 */
static void hammer(unsigned mib) {
  const uint32_t rings = mib * (256 / RING);
  uint8_t *memory = mmap(NULL, (size_t)mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) fail("memory to hammer");
  for (uint32_t pass = 0;; pass++) {
    for (uint32_t ring = 0; ring < rings; ring++) {
      volatile uint32_t *page[RING];
      for (uint32_t i = 0; i < RING; i++) {
        page[i] = (volatile uint32_t *)(memory + ((size_t)ring * RING + i) * BLOCK);
        const uint32_t have = *page[i], want = pass * TURNS;
        if (have == want) continue;
        say("F memory: page %u of ring %u holds store %u, %u was made\n", i, ring, have, want);
        for (;;) pause();
      }
      for (uint32_t turn = 1; turn <= TURNS; turn++)
        for (uint32_t i = 0; i < RING; i++) *page[i] = pass * TURNS + turn;
    }
  }
}

static void put32(uint8_t *at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* A header that every program which probes formats takes for true: whoever opens it as qcow2 opens its backing file too. */
static void write_qcow2_header(const char *backing) {
  static uint8_t header[BLOCK] __attribute__((aligned(4096)));
  const uint32_t name_at = 512, disk_bytes = 256u << 20, cluster_bits = 16;
  memset(header, 0, sizeof header);
  memcpy(header, "QFI\xfb", 4);
  put32(header + 4, 3);
  put32(header + 12, name_at);
  put32(header + 16, (uint32_t)strlen(backing));
  put32(header + 20, cluster_bits);
  put32(header + 28, disk_bytes);
  put32(header + 36, 1);                   /* entries of the L1 table, at: */
  put32(header + 44, 1u << cluster_bits);
  put32(header + 52, 2u << cluster_bits);  /* the refcount table, of one cluster */
  put32(header + 56, 1);
  put32(header + 96, 4);                   /* refcounts of 16 bits */
  put32(header + 100, 104);
  memcpy(header + name_at, backing, strlen(backing));
  int fd = open("/dev/vda", O_WRONLY | O_DIRECT | O_SYNC);
  if (fd < 0 || pwrite(fd, header, BLOCK, 0) != (ssize_t)BLOCK) fail("write of a qcow2 header");
  close(fd);
}

static void control(void) {
  int fd = serial("/dev/ttyS2");
  if (fd < 0) fail("/dev/ttyS2");
  say("C ready\n"); /* what came before the port was open is lost */
  char line[200];
  for (size_t length = 0;;) {
    ssize_t got = read(fd, line + length, 1);
    if (got < 0) fail("read of a control line");
    if (got == 0) continue;
    if (line[length] != '\n' && length < sizeof line - 2) {
      length++;
      continue;
    }
    line[length] = 0;
    length = 0;
    if (!strncmp(line, "qcow2 ", 6)) write_qcow2_header(line + 6);
    say("C %s\n", line);
    if (strcmp(line, "off")) continue;
    sync();
    reboot(RB_POWER_OFF);
  }
}

struct plan {
  unsigned long bytes, interval, batch, offset, area;
  char pattern[16];
};

static int open_disk(const char *path) {
  int disk = -1;
  for (int i = 0; i < 500 && (disk = open(path, O_RDWR)) < 0; i++) usleep(10000);
  if (disk < 0) fail(path);
  return disk;
}

static void wait_next(struct timespec *next, unsigned long interval) {
  next->tv_nsec += (long)(interval % 1000) * 1000000;
  next->tv_sec += (time_t)(interval / 1000) + next->tv_nsec / 1000000000;
  next->tv_nsec %= 1000000000;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  if (now.tv_sec > next->tv_sec) *next = now; /* the disk was slower than the plan: no burst afterwards */
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, next, NULL);
}

/* Records on a disk as it is, for ever. `tag` stands behind the D of what is told. */
static void write_records(int disk, const char *tag, uint64_t n, const struct plan *plan) {
  if (!strcmp(plan->pattern, "idle"))
    for (;;) pause();
  int scattered = !strcmp(plan->pattern, "scattered");
  uint64_t slots = plan->area / plan->bytes;
  uint8_t *record = aligned_alloc(BLOCK, plan->bytes);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (;;) {
    for (unsigned long i = 0; i < plan->batch; i++) {
      n++;
      fill(record, (uint32_t)plan->bytes, n);
      uint64_t slot = (scattered ? n * 2654435761u : n) & (slots - 1);
      if (pwrite(disk, record, plan->bytes, (off_t)(plan->offset + slot * plan->bytes)) != (ssize_t)plan->bytes) fail("write");
    }
    if (fdatasync(disk)) fail("fsync");
    say("D%s %lu\n", tag, n);
    if (plan->interval) wait_next(&next, plan->interval);
  }
}

#define PAGE 8192u
#define PAGE_MAGIC "SWAMPAGE"
#define ROWS 64u
#define ROWS_AT 1024u
#define ROW_BYTES 104u

static void stream(uint8_t *at, uint32_t bytes, uint32_t x) {
  for (uint32_t i = 0; i < bytes; i += 4) {
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    memcpy(at + i, &x, 4);
  }
}

/*
 * A database at work, for ever: pages that are full of old content, each change of which is the number in its header and one row
 * of 104 bytes. It keeps its pages in memory and writes past the page cache, as databases do.
 */
static void write_pages(const struct plan *plan) {
  int disk = open("/dev/vda", O_RDWR | O_DIRECT);
  uint8_t *table = aligned_alloc(BLOCK, plan->area);
  if (disk < 0 || !table || plan->bytes != PAGE) fail("pages");
  const uint64_t slots = plan->area / PAGE;
  for (uint64_t slot = 0; slot < slots; slot++) {
    uint8_t *page = table + slot * PAGE;
    stream(page, PAGE, seed_of(slot, 0));
    memcpy(page, PAGE_MAGIC, 8);
    memset(page + 8, 0, 8);
  }
  for (uint64_t at = 0; at < plan->area; at += 1 << 20)
    if (pwrite(disk, table + at, 1 << 20, (off_t)(plan->offset + at)) != 1 << 20) fail("write of a table");
  if (fdatasync(disk)) fail("fsync");
  say("R 0\n");
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (uint64_t n = 0;;) {
    for (unsigned long i = 0; i < plan->batch; i++) {
      n++;
      uint64_t slot = (n * 2654435761u) & (slots - 1);
      uint8_t *page = table + slot * PAGE;
      uint32_t row = seed_of(n, 1) % ROWS;
      memcpy(page + 8, &n, 8);
      memcpy(page + ROWS_AT + row * ROW_BYTES, &n, 8);
      stream(page + ROWS_AT + row * ROW_BYTES + 8, ROW_BYTES - 8, seed_of(n, 2));
      if (pwrite(disk, page, PAGE, (off_t)(plan->offset + slot * PAGE)) != (ssize_t)PAGE) fail("write of a page");
    }
    if (fdatasync(disk)) fail("fsync");
    say("D %lu\n", n);
    if (plan->interval) wait_next(&next, plan->interval);
  }
}

/* Records in the files of a file system, for ever: data, a new inode and a rename each time. */
static void write_files(const char *path, const char *type, const char *tag, const struct plan *plan) {
  close(open_disk(path));
  char at[16]; /* of its own: the other writers share the name space */
  snprintf(at, sizeof at, "/fs-%s", tag);
  mkdir(at, 0755);
  if (mount(path, at, type, 0, "") || chdir(at)) fail(path);
  int directory = open(".", O_RDONLY | O_DIRECTORY);
  uint8_t *record = aligned_alloc(BLOCK, FILE_BYTES);
  struct timespec next;
  clock_gettime(CLOCK_MONOTONIC, &next);
  for (uint64_t n = 1;; n++) {
    char name[32];
    snprintf(name, sizeof name, "%lu", n % FILES);
    fill(record, FILE_BYTES, n);
    int fd = open("new", O_CREAT | O_TRUNC | O_WRONLY, 0644);
    if (fd < 0 || write(fd, record, FILE_BYTES) != FILE_BYTES || fsync(fd) || close(fd)) fail("new file");
    if (rename("new", name) || fsync(directory)) fail("rename");
    say("D%s %lu\n", tag, n);
    wait_next(&next, plan->interval);
  }
}

/* The value of a kernel option, from `from` on; moves `from` behind it. */
static int option_at(const char **from, const char *name, char value[32]) {
  const char *at = strstr(*from, name);
  if (!at) return 0;
  *from = at + strlen(name);
  return sscanf(*from, "%31[a-z0-9,]", value) == 1;
}

int main(void) {
  mount("devtmpfs", "/dev", "devtmpfs", 0, "");
  mount("proc", "/proc", "proc", 0, "");
  console = serial("/dev/ttyS0");
  if (console < 0) console = 2;
  load_modules();

  char line[4096] = "", value[32], path[48];
  int fd = open("/proc/cmdline", O_RDONLY);
  ssize_t length = read(fd, line, sizeof line - 1);
  line[length > 0 ? length : 0] = 0;
  struct plan plan = {.bytes = 65536, .interval = 200, .batch = 1, .area = 64ul << 20, .pattern = "sequential"};
  unsigned dirty_mib = 0, dirty_rate = 0, hammer_mib = 0, beat_ms = BEAT_MS;
  char *option = strstr(line, "swam.write=");
  if (option)
    sscanf(option + 11, "%lu,%lu,%15[a-z],%lu,%lu,%lu", &plan.bytes, &plan.interval, plan.pattern, &plan.batch, &plan.offset,
           &plan.area);
  if ((option = strstr(line, "swam.dirty="))) sscanf(option + 11, "%u,%u", &dirty_mib, &dirty_rate);
  if ((option = strstr(line, "swam.beat=")) && (sscanf(option + 10, "%u", &beat_ms) != 1 || !beat_ms || beat_ms >= 1000)) {
    errno = EINVAL;
    fail("swam.beat");
  }
  if ((option = strstr(line, "swam.hammer="))) sscanf(option + 12, "%u", &hammer_mib);
  uint64_t slots = plan.bytes ? plan.area / plan.bytes : 0;
  if (!plan.bytes || plan.bytes % BLOCK || !slots || (slots & (slots - 1)) || !plan.batch || plan.batch > slots) {
    errno = EINVAL;
    fail("swam.write");
  }

  int disk = open_disk("/dev/vda");
  uint64_t n = newest_on("/dev/vda", plan.offset, plan.area);
  if (!fork()) beat(beat_ms * 1000000l);
  if (hammer_mib && !fork()) hammer(hammer_mib);
  if (dirty_mib && !fork()) dirty(dirty_mib, dirty_rate);
  if (strstr(line, "swam.control") && !fork()) control();
  for (const char *at = line; option_at(&at, "swam.disk=", value);) {
    if (fork()) continue;
    snprintf(path, sizeof path, "/dev/%s", value);
    int other = open_disk(path);
    write_records(other, value + 2, newest_on(path, plan.offset, plan.area), &plan);
  }
  for (const char *at = line; option_at(&at, "swam.fs=", value);) {
    char *type = strchr(value, ',');
    if (!type || fork()) continue;
    *type++ = 0;
    snprintf(path, sizeof path, "/dev/%s", value);
    write_files(path, type, value + 2, &plan);
  }
  if (!strcmp(plan.pattern, "pages")) write_pages(&plan);
  say("R %lu\n", n);
  write_records(disk, "", n, &plan);
}
