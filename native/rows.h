// Vector reads and writes of rows of f32, and their division among threads.
#pragma once
#include "simd.h"
#include "tensor.h"

// VL numbers of a row, `fill` past its end.
static inline vf row_at(const float *row, int64_t j, int64_t n, float fill) {
  return n - j >= VL ? load(row + j) : load_part(row + j, n - j, fill);
}

static inline void put_row(float *row, int64_t j, int64_t n, vf v) {
  if (n - j >= VL)
    store(row + j, v);
  else
    store_part(row + j, v, n - j);
}

// A thread's contiguous share of n numbers, in whole cache lines.
static inline void span_of(int64_t n, int ith, int nth, int64_t *from, int64_t *to) {
  share_of((n + 15) / 16, ith, nth, from, to);
  *from = *from * 16 < n ? *from * 16 : n;
  *to = *to * 16 < n ? *to * 16 : n;
}

static inline int64_t count_of(const Tensor *t) { return t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]; }
