// The parts of ggml that the kernels know: the head of its tensor record, and the types they read.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { SOURCES = 10 };

typedef struct Tensor {
  int32_t type;
  void *buffer;
  int64_t ne[4]; // sizes, innermost first
  size_t nb[4];  // strides in bytes
  int32_t op;
  int32_t op_params[16];
  int32_t flags;
  struct Tensor *src[SOURCES];
  struct Tensor *view_src;
  size_t view_offs;
  void *data;
} Tensor;

enum { TYPE_F32 = 0, TYPE_F16 = 1, TYPE_I32 = 26, TYPE_BF16 = 30 };

// An op's settings travel in the 64 bits of its user data: flags in the low half, one float in the high half.
typedef union {
  void *pointer;
  struct {
    uint32_t flags;
    float value;
  };
} Settings;

// A thread's memory of at least so many bytes, aligned to 64; kept between ops and freed with the thread.
void *coppice_scratch(int slot, size_t bytes);
enum { SCRATCH_A, SCRATCH_B, SCRATCH_1, SCRATCH_2, SCRATCH_3, SCRATCH_4, SCRATCH_5, SCRATCH_6, SCRATCH_7, SCRATCH_SLOTS };

// A thread's share of n items.
static inline void share_of(int64_t n, int ith, int nth, int64_t *from, int64_t *to) {
  *from = n * ith / nth;
  *to = n * (ith + 1) / nth;
}
