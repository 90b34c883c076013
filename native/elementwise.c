// Kernels limited by memory bandwidth: each reads and writes every number once.
#include "rows.h"

// AdamW (Loshchilov & Hutter 2019, algorithm 2) on a scaled gradient. In place on the weight.
// src: weight, gradient, m, v, settings [rate, beta1, beta2, epsilon, decay, 1/(1-beta1^t), 1/(1-beta2^t)], gradient scale [1]
OP(adamw) {
  (void)data;
  float *w = dst->data, *m = dst->src[2]->data, *v = dst->src[3]->data;
  const float *g = dst->src[1]->data, *s = dst->src[4]->data;
  const float scale = *(const float *)dst->src[5]->data;
  const float rate = s[0], beta1 = s[1], beta2 = s[2], epsilon = s[3], keep = 1 - rate * s[4];
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  for (; i + VL <= to; i += VL) {
    const vf gi = load(g + i) * scale;
    const vf mi = load(m + i) * beta1 + gi * (1 - beta1), vi_ = load(v + i) * beta2 + gi * gi * (1 - beta2);
    store(m + i, mi);
    store(v + i, vi_);
    store(w + i, load(w + i) * keep - mi * (rate * s[5]) / (vsqrt(vi_ * s[6]) + epsilon));
  }
  for (; i < to; i++) {
    const float gi = g[i] * scale;
    m[i] = m[i] * beta1 + gi * (1 - beta1);
    v[i] = v[i] * beta2 + gi * gi * (1 - beta2);
    w[i] = w[i] * keep - m[i] * (rate * s[5]) / (sqrtf(v[i] * s[6]) + epsilon);
  }
}

// Squares summed over 64 equal spans, so that the sum is the same for any number of threads. src: x -> [64]
OP(sum_squares) {
  (void)data;
  const float *x = dst->src[0]->data;
  const int64_t n = count_of(dst->src[0]);
  for (int part = ith; part < 64; part += nth) {
    int64_t i, to;
    span_of(n, part, 64, &i, &to);
    double sum = 0;
    while (i < to) { // in f32 over a bounded span, in f64 beyond
      const int64_t end = i + 16384 < to ? i + 16384 : to;
      vf total[4] = {{0}};
      for (; i + 4 * VL <= end; i += 4 * VL)
        for (int j = 0; j < 4; j++) {
          const vf v = load(x + i + j * VL);
          __builtin_prefetch(x + i + j * VL + 1024);
          total[j] += v * v;
        }
      sum += sum_of((total[0] + total[1]) + (total[2] + total[3]));
      for (; i < end; i++) sum += (double)x[i] * x[i];
    }
    ((float *)dst->data)[part] = (float)sum;
  }
}

// dst[ids[i]] += x[i] for rows. In place on the table. src: table, x [n, width], ids i32 [n]
OP(add_rows) {
  (void)data;
  const Tensor *x = dst->src[1], *ids = dst->src[2];
  int64_t from, to;
  span_of(dst->ne[0], ith, nth, &from, &to); // each thread has columns of its own, because ids may repeat
  for (int64_t r = 0; r < x->ne[1]; r++) {
    const float *row = (const float *)((const char *)x->data + r * x->nb[1]);
    float *out = (float *)dst->data + (int64_t)((const int32_t *)ids->data)[r] * dst->ne[0];
    int64_t i = from;
    for (; i + VL <= to; i += VL) store(out + i, load(out + i) + load(row + i));
    for (; i < to; i++) out[i] += row[i];
  }
}

// src: tensors, whose rows are concatenated
OP(concat_last) {
  (void)data;
  int64_t from, to;
  share_of(dst->ne[1] * dst->ne[2] * dst->ne[3], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    float *out = (float *)dst->data + r * dst->ne[0];
    for (int i = 0; i < SOURCES && dst->src[i] != NULL; i++) {
      const int64_t n = dst->src[i]->ne[0];
      memcpy(out, (const float *)dst->src[i]->data + r * n, 4 * n);
      out += n;
    }
  }
}
