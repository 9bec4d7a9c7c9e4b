/*
 * beats: stamps the heartbeats of guests with the lab's own clock.
 *
 * usage: beats --out DIR NAME=DIR [NAME=DIR ...]
 * QEMU writes what a guest sends through a serial or virtio port to DIR/GUEST.beat (one number and a newline each).
 * inotify tells of every write; for each whole line a sample "HOST NUMBER MONOTONIC_US REALTIME_US" is appended to
 * OUT/GUEST.samples. A process of its own, so that a busy test does not stamp late; it judges nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HOSTS_MAX 8
#define FILES_MAX 256
#define LINE_MAX_BYTES 32

struct file {
  int host, fd, out;
  char name[256];
  off_t at;
  char line[LINE_MAX_BYTES];
  size_t have;
};

static struct file files[FILES_MAX];
static int file_count;
static struct { const char *name, *dir; int watch; } hosts[HOSTS_MAX];
static int host_count;
static const char *out_dir;

static void die(const char *what) {
  fprintf(stderr, "beats: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t us(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static struct file *file_of(int host, const char *name) {
  size_t length = strlen(name);
  if (length < 6 || length >= sizeof files[0].name || strcmp(name + length - 5, ".beat")) return NULL;
  for (int i = 0; i < file_count; i++)
    if (files[i].host == host && !strcmp(files[i].name, name)) return &files[i];
  if (file_count == FILES_MAX) return NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", hosts[host].dir, name);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NULL;
  snprintf(path, sizeof path, "%s/%.*s.samples", out_dir, (int)(length - 5), name);
  int out = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (out < 0) die(path);
  struct file *file = &files[file_count++];
  memset(file, 0, sizeof *file);
  file->host = host, file->fd = fd, file->out = out;
  strcpy(file->name, name);
  return file;
}

static void stamp(struct file *file) {
  uint64_t mono = us(CLOCK_MONOTONIC), real = us(CLOCK_REALTIME);
  struct stat stat;
  if (!fstat(file->fd, &stat) && stat.st_size < file->at) file->at = 0, file->have = 0; /* it was truncated */
  char bytes[4096], text[128];
  ssize_t n;
  while ((n = pread(file->fd, bytes, sizeof bytes, file->at)) > 0) {
    file->at += n;
    for (ssize_t i = 0; i < n; i++) {
      if (bytes[i] == '\n') {
        file->line[file->have] = 0;
        if (file->have) {
          int length = snprintf(text, sizeof text, "%s %s %lu %lu\n", hosts[file->host].name, file->line, mono, real);
          if (write(file->out, text, (size_t)length) != length) die("write of a sample");
        }
        file->have = 0;
      } else if (bytes[i] >= '0' && bytes[i] <= '9' && file->have < LINE_MAX_BYTES - 1) {
        file->line[file->have++] = bytes[i];
      }
    }
  }
}

int main(int argc, char **argv) {
  int notify = inotify_init1(IN_CLOEXEC);
  if (notify < 0) die("inotify");
  for (int i = 1; i < argc; i++) {
    char *equals = strchr(argv[i], '=');
    if (!strcmp(argv[i], "--out") && i + 1 < argc) out_dir = argv[++i];
    else if (equals && host_count < HOSTS_MAX) {
      *equals = 0;
      hosts[host_count].name = argv[i];
      hosts[host_count].dir = equals + 1;
      hosts[host_count].watch = inotify_add_watch(notify, equals + 1, IN_MODIFY | IN_DELETE);
      if (hosts[host_count++].watch < 0) die(equals + 1);
    }
  }
  if (!out_dir || !host_count) {
    fprintf(stderr, "usage: beats --out DIR NAME=DIR [NAME=DIR ...]\n");
    return 2;
  }
  struct sched_param high = {.sched_priority = 10};
  sched_setscheduler(0, SCHED_FIFO, &high); /* where it is allowed: stamps on time on a busy machine */
  char buffer[65536] __attribute__((aligned(__alignof__(struct inotify_event))));
  for (;;) {
    ssize_t length = read(notify, buffer, sizeof buffer);
    if (length <= 0) die("read of inotify");
    for (char *at = buffer; at < buffer + length;) {
      struct inotify_event *event = (struct inotify_event *)at;
      at += sizeof *event + event->len;
      for (int i = 0; i < host_count; i++) {
        if (hosts[i].watch != event->wd || !event->len) continue;
        if (event->mask & IN_DELETE) { /* a new file of that name is another file */
          for (int k = 0; k < file_count; k++) {
            if (files[k].host != i || strcmp(files[k].name, event->name)) continue;
            close(files[k].fd);
            close(files[k].out);
            files[k] = files[--file_count];
            break;
          }
          continue;
        }
        struct file *file = file_of(i, event->name);
        if (file) stamp(file);
      }
    }
  }
}
