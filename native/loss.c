// Losses on the output head's logits and their gradients, row by row: each row is read twice and no distribution is stored.
#include "rows.h"

enum { FORWARD_KL, REVERSE_KL, JENSEN_SHANNON };

// Log of the sum of e^(x scale).
static float log_sum_exp(const float *row, int64_t n, float scale) {
  vf most = splat(-INFINITY);
  for (int64_t j = 0; j < n; j += VL) most = vmax(most, row_at(row, j, n, -INFINITY));
  const float top = max_of(most) * scale;
  const vf factor = splat(scale), shift = splat(top);
  double sum = 0;
  for (int64_t j = 0; j < n;) {
    // partial sums in f32 over a bounded run, their total in f64
    const int64_t end = j + 4096 < n ? j + 4096 : n;
    vf total = (vf){0};
    for (; j < end; j += VL) total += vexp(row_at(row, j, n, -INFINITY) * factor - shift);
    sum += sum_of(total);
  }
  return top + (float)log(sum);
}

// log m of a mixture m = (p + q) / 2, from log p and log q: both kept above e^-80, so that the result is finite.
static inline vf log_ratio_to_mixture(vf own, vf other) {
  // log(q / m) = log 2 - log(1 + e^(log p - log q)), by log(1 + e^d) = max(d, 0) + log1p(e^-|d|)
  const vf d = other - own;
  const vf e = vexp(-vmax(d, -d));
  // log1p(e) for e in [0, 1]: 2 atanh(e / (2 + e)), whose argument is at most 1/3
  const vf z = e / (e + 2.0f), z2 = z * z;
  vf series = z2 * (2.0f / 15) + 2.0f / 13;
  series = series * z2 + 2.0f / 11;
  series = series * z2 + 2.0f / 9;
  series = series * z2 + 2.0f / 7;
  series = series * z2 + 2.0f / 5;
  series = series * z2 + 2.0f / 3;
  series = series * z2 + 2.0f;
  return splat(0.693147181f) - vmax(d, (vf){0}) - series * z;
}

// Sum over a row of the terms of reverse KL or Jensen-Shannon. ls, lt: the logs of sums to subtract from scaled logits.
static float row_loss(int kind, const float *student, const float *teacher, int64_t n, float scale, float ls, float lt) {
  const vf factor = splat(scale), vs = splat(ls), vt = splat(lt);
  double sum = 0;
  for (int64_t j = 0; j < n;) {
    const int64_t end = j + 4096 < n ? j + 4096 : n;
    vf total = (vf){0};
    for (; j < end; j += VL) {
      // past the end both logits are -1e30: their probabilities are 0 and their differences finite
      const vf lq = row_at(student, j, n, -1e30f) * factor - vs, lp = row_at(teacher, j, n, -1e30f) * factor - vt;
      if (kind == REVERSE_KL)
        total += vexp(lq) * (lq - lp);
      else
        total += (vexp(lp) * log_ratio_to_mixture(lp, lq) + vexp(lq) * log_ratio_to_mixture(lq, lp)) * 0.5f;
    }
    sum += sum_of(total);
  }
  return (float)sum;
}

// How many numbers of a row stay in the first-level cache.
enum { BLOCK = 2048 };

// The same for forward KL and both logarithms of sums in one pass over memory: sums are kept relative to the largest number so
// far, and scaled down when a larger one comes. With x scaled logits: KL = sum of p (xt - xs) - (log_sum_t - log_sum_s).
static void forward_kl_row(const float *student, const float *teacher, int64_t n, float scale, float *out) {
  const vf factor = splat(scale);
  float top_s = -INFINITY, top_t = -INFINITY;
  double sum_s = 0, sum_t = 0, cross = 0;
  for (int64_t from = 0; from < n; from += BLOCK) {
    const int64_t to = from + BLOCK < n ? from + BLOCK : n;
    vf most_s = splat(-INFINITY), most_t = splat(-INFINITY);
    for (int64_t j = from; j < to; j += VL) {
      most_s = vmax(most_s, row_at(student, j, to, -INFINITY));
      most_t = vmax(most_t, row_at(teacher, j, to, -INFINITY));
    }
    const float block_s = max_of(most_s) * scale, block_t = max_of(most_t) * scale;
    if (block_s > top_s) {
      sum_s *= exp(top_s - block_s);
      top_s = block_s;
    }
    if (block_t > top_t) {
      sum_t *= exp(top_t - block_t);
      cross *= exp(top_t - block_t);
      top_t = block_t;
    }
    const vf shift_s = splat(top_s), shift_t = splat(top_t);
    vf total_s = (vf){0}, total_t = (vf){0}, total = (vf){0};
    for (int64_t j = from; j < to; j += VL) {
      const vf s = row_at(student, j, to, -1e30f) * factor, t = row_at(teacher, j, to, -1e30f) * factor;
      const vf e = vexp(t - shift_t);
      total_s += vexp(s - shift_s);
      total_t += e;
      total += e * (t - s);
    }
    sum_s += sum_of(total_s);
    sum_t += sum_of(total_t);
    cross += sum_of(total);
  }
  const double log_s = top_s + log(sum_s), log_t = top_t + log(sum_t);
  out[0] = (float)(cross / sum_t - (log_t - log_s));
  out[1] = (float)log_s;
  out[2] = (float)log_t;
}

// src: student logits [n, vocab], teacher logits [n, vocab] -> [n, 3]: each row's divergence at 1 / scale, and the two logs of
// sums that its gradient needs.
OP(divergence) {
  const Settings s = {.pointer = data};
  const Tensor *student = dst->src[0], *teacher = dst->src[1];
  const int64_t n = student->ne[0];
  int64_t from, to;
  share_of(student->ne[1], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)((const char *)student->data + r * student->nb[1]);
    const float *y = (const float *)((const char *)teacher->data + r * teacher->nb[1]);
    float *out = (float *)dst->data + r * 3;
    if (s.flags == FORWARD_KL) {
      forward_kl_row(x, y, n, s.value, out);
      continue;
    }
    out[1] = log_sum_exp(x, n, s.value);
    out[2] = log_sum_exp(y, n, s.value);
    out[0] = row_loss((int)s.flags, x, y, n, s.value, out[1], out[2]);
  }
}

// src: student logits, teacher logits, the result of `divergence`, the gradient of the sum of its losses [1]
// -> the gradient of the student logits
OP(divergence_back) {
  const Settings s = {.pointer = data};
  const Tensor *student = dst->src[0], *teacher = dst->src[1], *stats = dst->src[2], *dy = dst->src[3];
  const int64_t n = student->ne[0];
  int64_t from, to;
  share_of(student->ne[1], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)((const char *)student->data + r * student->nb[1]);
    const float *y = (const float *)((const char *)teacher->data + r * teacher->nb[1]);
    const float *known = (const float *)stats->data + r * 3;
    float *out = (float *)dst->data + r * n;
    const vf factor = splat(s.value), vs = splat(known[1]), vt = splat(known[2]);
    const vf outer = splat(((const float *)dy->data)[0] * s.value);
    // of the sum q log(q/m), for Jensen-Shannon: twice the loss is that and its mirror image
    float mean = known[0];
    if (s.flags == JENSEN_SHANNON) {
      vf total = (vf){0};
      for (int64_t j = 0; j < n; j += VL) {
        const vf lq = row_at(x, j, n, -1e30f) * factor - vs, lp = row_at(y, j, n, -1e30f) * factor - vt;
        total += vexp(lq) * log_ratio_to_mixture(lq, lp);
      }
      mean = sum_of(total);
    }
    for (int64_t j = 0; j < n; j += VL) {
      const vf lq = row_at(x, j, n, -1e30f) * factor - vs, lp = row_at(y, j, n, -1e30f) * factor - vt;
      const vf q = vexp(lq);
      vf g;
      if (s.flags == FORWARD_KL)
        g = q - vexp(lp);
      else if (s.flags == REVERSE_KL)
        g = q * (lq - lp - mean);
      else
        g = q * (log_ratio_to_mixture(lq, lp) - mean) * 0.5f;
      put_row(out, j, n, g * outer);
    }
  }
}

// src: logits [n, vocab], the index of each row's target in them, i32 [n]: row * vocab + id -> [n, 2]: each row's negative
// log-likelihood and log of sums
OP(cross_entropy) {
  (void)data;
  const Tensor *logits = dst->src[0], *targets = dst->src[1];
  int64_t from, to;
  share_of(logits->ne[1], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)((const char *)logits->data + r * logits->nb[1]);
    float *out = (float *)dst->data + r * 2;
    out[1] = log_sum_exp(x, logits->ne[0], 1);
    out[0] = out[1] - x[((const int32_t *)targets->data)[r] - r * logits->ne[0]];
  }
}

// src: logits, target indices, the result of `cross_entropy`, the gradient of the sum of its losses [1]
// -> the gradient of the logits
OP(cross_entropy_back) {
  (void)data;
  const Tensor *logits = dst->src[0], *targets = dst->src[1], *stats = dst->src[2], *dy = dst->src[3];
  const int64_t n = logits->ne[0];
  int64_t from, to;
  share_of(logits->ne[1], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)((const char *)logits->data + r * logits->nb[1]);
    float *out = (float *)dst->data + r * n;
    const float outer = ((const float *)dy->data)[0];
    const vf shift = splat(((const float *)stats->data)[r * 2 + 1]);
    for (int64_t j = 0; j < n; j += VL) put_row(out, j, n, vexp(row_at(x, j, n, -INFINITY) - shift) * outer);
    out[((const int32_t *)targets->data)[r] - r * n] -= outer;
  }
}
