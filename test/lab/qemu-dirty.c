/*
 * For QEMU before 9.0, loaded into the lab's guests (LD_PRELOAD): mends its loss of dirty pages under software emulation.
 *
 * While a guest migrates, QEMU takes over the bits of the pages that were written and clears them, but leaves the entries
 * of the virtual CPU's TLB that say "this page is dirty already": until that TLB happens to be flushed, stores to those
 * pages set no bit, and if the page has been sent they are missing at the target. The guest then panics, minutes later or
 * at once, and the migration, plain as well as through SWAM, looks like the culprit. Mended upstream in 9.0 by commit
 * 03bfc2188f06 ("physmem: Fix migration dirty bitmap coherency with TCG memory access"); Debian 12 has 7.2. KVM has no such TLB.
 *
 * This replaces memory_global_after_dirty_log_sync(), which QEMU calls between taking over the bits and sending the first
 * page: there every virtual CPU leaves its code and, beyond what the original does, flushes its TLB. On a QEMU that is
 * mended (it exports tlb_reset_dirty_range_all) nothing is changed; one that is not and cannot be ends, with a message.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef void on_cpu(void *cpu, uint64_t data);

static void *(*get_cpu)(int index);
static void (*run_on_cpu)(void *cpu, on_cpu *work, uint64_t data);
static on_cpu *flush; /* tlb_flush(cpu), which does not look at a second argument */

static void after_dirty_log_sync(void) {
  void *cpu;
  for (int index = 0; (cpu = get_cpu(index)); index++) run_on_cpu(cpu, flush, 0);
}

static void unable(const char *what) {
  dprintf(2, "qemu-dirty.so: cannot mend this QEMU's dirty tracking: %s\n", what);
  _exit(1);
}

__attribute__((constructor)) static void mend(void) {
  if (dlsym(RTLD_DEFAULT, "tlb_reset_dirty_range_all")) return;
  uint8_t *target = dlsym(RTLD_DEFAULT, "memory_global_after_dirty_log_sync");
  *(void **)&get_cpu = dlsym(RTLD_DEFAULT, "qemu_get_cpu");
  *(void **)&run_on_cpu = dlsym(RTLD_DEFAULT, "run_on_cpu");
  *(void **)&flush = dlsym(RTLD_DEFAULT, "tlb_flush");
  if (!target || !get_cpu || !run_on_cpu || !flush) unable("a function is missing");
  uint8_t jump[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* movabs $address, %rax; jmp *%rax */
  void (*instead)(void) = after_dirty_log_sync;
  memcpy(jump + 2, &instead, 8);
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)target & -page;
  size_t bytes = (uintptr_t)target + sizeof jump - start;
  if (mprotect((void *)start, bytes, PROT_READ | PROT_WRITE | PROT_EXEC)) unable("its code cannot be written");
  memcpy(target, jump, sizeof jump);
  if (mprotect((void *)start, bytes, PROT_READ | PROT_EXEC)) unable("its code stays writable");
}
