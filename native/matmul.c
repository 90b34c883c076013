// The matrix product as an op: dst[.., n, m] (+)= sum over k of a(m, k) * b(n, k), any operand transposed, batched.
#include "gemm.h"

enum { A_TRANSPOSED = 1, B_TRANSPOSED = 2, ADD = 4, BF16 = 8, LOWER = 16 };

// How to divide an m x n result among threads so that the least is packed: a grid of `rows` x (threads / rows).
static int grid_rows(int64_t m, int64_t n, int threads) {
  int best = 1;
  double least = 1e300;
  for (int rows = 1; rows <= threads; rows++) {
    if (threads % rows != 0) continue;
    const double packed = (double)m / rows + (double)n / (threads / rows);
    if (packed < least) {
      least = packed;
      best = rows;
    }
  }
  return best;
}

static void part(int64_t n, int unit, int i, int parts, int64_t *from, int64_t *to) {
  share_of((n + unit - 1) / unit, i, parts, from, to);
  *from *= unit;
  *to = *to * unit < n ? *to * unit : n;
}

// A thread's rows of a lower triangle of n rows, so that all threads have as many elements: up to row r there are r * r / 2.
static void triangle_part(int64_t n, int unit, int i, int parts, int64_t *from, int64_t *to) {
  *from = (int64_t)(n * sqrt((double)i / parts)) / unit * unit;
  *to = i + 1 == parts ? n : (int64_t)(n * sqrt((double)(i + 1) / parts)) / unit * unit;
}

// src: a, b; in place: the sum so far, a, b. LOWER: a square result is wanted on and below its diagonal only.
OP(matmul) {
  const uint32_t flags = ((Settings){.pointer = data}).flags;
  const int first = flags & ADD ? 1 : 0;
  const Tensor *a = dst->src[first], *b = dst->src[first + 1];
  const int ar = flags & A_TRANSPOSED ? 0 : 1, br = flags & B_TRANSPOSED ? 0 : 1;
  const int64_t m = dst->ne[0], n = dst->ne[1], k = a->ne[1 - ar];
  const int64_t batches = dst->ne[2] * dst->ne[3];
  const int pairs = HAS_PAIRS && (flags & BF16);
  // whole matrices to each thread where there are enough of them
  const int split = batches % nth == 0 ? 1 : nth;
  const int rows = grid_rows(m, n, split);
  int64_t m0, m1, n0, n1;
  part(m, width_a(pairs), split == 1 ? 0 : ith % rows, rows, &m0, &m1);
  part(n, width_b(pairs), split == 1 ? 0 : ith / rows, split / rows, &n0, &n1);
  const int lower = (flags & LOWER) != 0;
  // the gradients of weights, sums over rows, are read after the whole backward pass; other large results do not fit the caches
  const int is_gradient = (flags & (A_TRANSPOSED | B_TRANSPOSED)) == (A_TRANSPOSED | B_TRANSPOSED);
  const int past_caches = m * n * 4 >= (is_gradient ? 1 : 16) << 20;
  if (lower && split > 1) {
    m0 = 0;
    m1 = m;
    triangle_part(n, width_b(pairs), ith, split, &n0, &n1);
  }
  for (int64_t i = split == 1 ? ith : 0; i < batches; i += split == 1 ? nth : 1) {
    const int64_t i2 = i % dst->ne[2], i3 = i / dst->ne[2];
    // operands with fewer matrices serve groups of consecutive results (grouped queries)
    const int64_t a2 = i2 * a->ne[2] / dst->ne[2], a3 = i3 * a->ne[3] / dst->ne[3];
    const int64_t b2 = i2 * b->ne[2] / dst->ne[2], b3 = i3 * b->ne[3] / dst->ne[3];
    const Operand left = {(const char *)a->data + a2 * a->nb[2] + a3 * a->nb[3], a->type, a->nb[ar], a->nb[1 - ar]};
    const Operand right = {(const char *)b->data + b2 * b->nb[2] + b3 * b->nb[3], b->type, b->nb[br], b->nb[1 - br]};
    float *out = (float *)((char *)dst->data + i2 * dst->nb[2] + i3 * dst->nb[3]);
    if (m1 > m0 && n1 > n0)
      multiply(&left, m0, m1, &right, n0, n1, k, out, (int64_t)(dst->nb[1] / 4), pairs, (flags & ADD) != 0, lower, past_caches);
  }
}
