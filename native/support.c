// Code for any processor: each thread's memory, which variants can run, and whether ggml's records are as expected.
#include "platform.h"
#include "tensor.h"
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

typedef struct {
  void *memory[SCRATCH_SLOTS];
  size_t bytes[SCRATCH_SLOTS];
} Scratch;

static _Thread_local Scratch *scratch;
static ThreadKey key;

static void AT_THREAD_END release(void *value) {
  Scratch *held = value;
  if (held == NULL) return;
  for (int i = 0; i < SCRATCH_SLOTS; i++) free_aligned(held->memory[i]);
  free(held);
}

__attribute__((constructor)) static void at_load(void) {
  key = create_thread_key(release);
  never_unload((void *)release);
}

static void *out_of_memory(size_t bytes) {
  fprintf(stderr, "coppice: no memory for %zu bytes of a kernel's scratch space\n", bytes);
  abort();
}

void *coppice_scratch(int slot, size_t bytes) {
  if (scratch == NULL) {
    scratch = calloc(1, sizeof(Scratch));
    if (scratch == NULL) return out_of_memory(sizeof(Scratch));
    set_thread_value(key, scratch);
  }
  if (scratch->bytes[slot] < bytes) {
    free_aligned(scratch->memory[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    scratch->memory[slot] = allocate_aligned(rounded, 64);
    if (scratch->memory[slot] == NULL) return out_of_memory(rounded);
    scratch->bytes[slot] = rounded;
  }
  return scratch->memory[slot];
}

#if defined(__x86_64__)
// Instruction sets by CPUID (Intel's manual, volume 2A) rather than by __builtin_cpu_supports, whose tables not every linker has.
typedef struct {
  int avx2, avxvnni, avx512, avx512vnni, avx512bf16, amxbf16;
} Sets;

// Which registers the operating system saves: bits of XCR0.
static uint64_t saved_registers(void) {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static Sets instruction_sets(void) {
  enum { FMA = 1 << 12, XSAVE = 1 << 27, F16C = 1 << 29 };                               // leaf 1, ecx
  enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };                                       // leaf 7, edx
  enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 };     // leaf 7, ebx
  enum { AVX512_VNNI = 1 << 11 };                                                        // leaf 7, ecx
  enum { AVX_VNNI = 1 << 4, BF16 = 1 << 5 };                                             // leaf 7.1, eax
  const uint32_t avx512vl = 1u << 31;                                                    // leaf 7, ebx
  const uint64_t vectors = 0x6, wide_vectors = 0xe6, tiles = 0x60000;                    // XCR0
  Sets sets = {0};
  uint32_t a, b, c, d;
  const uint32_t base = FMA | XSAVE | F16C;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & base) != base) return sets;
  const uint64_t saved = saved_registers();
  if ((saved & vectors) != vectors || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return sets;
  sets.avx2 = (b & AVX2) != 0;
#if defined(__APPLE__)
  const int saves_wide = 1; // from a thread's first use of them; XCR0 does not say so before
#else
  const int saves_wide = (saved & wide_vectors) == wide_vectors;
#endif
  const uint32_t wide = AVX512F | AVX512DQ | AVX512BW | avx512vl;
  sets.avx512 = sets.avx2 && saves_wide && (b & wide) == wide;
  sets.avx512vnni = sets.avx512 && (c & AVX512_VNNI) != 0;
  const int has_tiles = (saved & tiles) == tiles && (d & (AMX_BF16 | AMX_TILE)) == (AMX_BF16 | AMX_TILE);
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) {
    sets.avx512bf16 = sets.avx512 && (a & BF16) != 0;
    sets.avxvnni = sets.avx2 && (a & AVX_VNNI) != 0;
  }
  sets.amxbf16 = sets.avx512bf16 && has_tiles;
  return sets;
}
#endif

#if defined(__x86_64__)
// Asks the system for the use of tiles, whose registers it does not save for every process.
static int tiles_permitted(void) {
#if defined(__linux__)
  enum { REQUEST = 0x1023, TILE_DATA = 18 }; // ARCH_REQ_XCOMP_PERM, Documentation/arch/x86/xstate.rst
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return 0;
#endif
}
#endif

// Whether this processor has what a variant was compiled for, and the system permits its use.
int coppice_supports(const char *variant) {
#if defined(__x86_64__)
  const Sets sets = instruction_sets();
  if (strcmp(variant, "avx2") == 0) return sets.avx2;
  if (strcmp(variant, "avx2int16") == 0) return sets.avx2;
  if (strcmp(variant, "avxvnni") == 0) return sets.avxvnni;
  if (strcmp(variant, "avx512") == 0) return sets.avx512;
  if (strcmp(variant, "avx512vnni") == 0) return sets.avx512vnni;
  if (strcmp(variant, "avx512bf16") == 0) return sets.avx512bf16;
  if (strcmp(variant, "amxbf16") == 0) return sets.amxbf16 && tiles_permitted();
  if (strcmp(variant, "emulated") == 0) return sets.avx2;
#elif defined(__aarch64__)
  if (strcmp(variant, "neon") == 0) return 1;
  if (strcmp(variant, "neonbf16") == 0 || strcmp(variant, "neonbfmmla") == 0) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP2) >> 14) & 1; // HWCAP2_BF16
#elif defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &found, &size, NULL, 0) == 0 && found;
#endif
  }
#endif
  (void)variant;
  return 0;
}

// Reports what the kernels read from a tensor, for comparison with ggml's own values: type, sizes, strides, first source, data.
void coppice_describe(const Tensor *t, int64_t out[11]) {
  out[0] = t->type;
  for (int i = 0; i < 4; i++) {
    out[1 + i] = t->ne[i];
    out[5 + i] = (int64_t)t->nb[i];
  }
  out[9] = (int64_t)(intptr_t)t->src[0];
  out[10] = (int64_t)(intptr_t)t->data;
}
