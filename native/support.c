// Code for any processor: each thread's memory, which variants can run, and whether ggml's records are as expected.
#include "tensor.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(void *value) {
  Scratch *held = value;
  for (int i = 0; i < SCRATCH_SLOTS; i++) free(held->memory[i]);
  free(held);
}

static void create_key(void) { pthread_key_create(&key, release); }

static void *out_of_memory(size_t bytes) {
  fprintf(stderr, "coppice: no memory for %zu bytes of a kernel's scratch space\n", bytes);
  abort();
}

void *coppice_scratch(int slot, size_t bytes) {
  if (scratch == NULL) {
    pthread_once(&once, create_key);
    scratch = calloc(1, sizeof(Scratch));
    if (scratch == NULL) return out_of_memory(sizeof(Scratch));
    pthread_setspecific(key, scratch);
  }
  if (scratch->bytes[slot] < bytes) {
    free(scratch->memory[slot]);
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    if (posix_memalign(&scratch->memory[slot], 64, rounded) != 0) return out_of_memory(rounded);
    scratch->bytes[slot] = rounded;
  }
  return scratch->memory[slot];
}

// Whether this processor has what a variant was compiled for.
int coppice_supports(const char *variant) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); // f16c came before avx2
  const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (strcmp(variant, "avx2") == 0) return avx2;
  if (strcmp(variant, "avx512") == 0) return avx512;
  if (strcmp(variant, "avx512bf16") == 0) return avx512 && __builtin_cpu_supports("avx512bf16");
#elif defined(__aarch64__)
  if (strcmp(variant, "neon") == 0) return 1;
  if (strcmp(variant, "neonbf16") == 0) {
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
