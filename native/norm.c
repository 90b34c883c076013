// Root-mean-square normalisation with a gain (Zhang & Sennrich 2019, eq. 4), and the gated activation (Shazeer 2020, eq. 6).
#include "rows.h"

static float inverse_rms(const float *x, int64_t n, float epsilon) {
  vf total[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL)
    for (int j = 0; j < 4; j++) {
      const vf v = load(x + i + j * VL);
      total[j] += v * v;
    }
  float sum = sum_of((total[0] + total[1]) + (total[2] + total[3]));
  for (; i < n; i++) sum += x[i] * x[i];
  return 1 / sqrtf(sum / (float)n + epsilon);
}

// src: x [rows, n], gain [n] -> x / rms(x) * gain
void KERNEL(rms_norm)(Tensor *dst, int ith, int nth, void *data) {
  const Settings s = {.pointer = data};
  const float *gain = dst->src[1]->data;
  const int64_t n = dst->ne[0];
  int64_t from, to;
  share_of(dst->ne[1] * dst->ne[2] * dst->ne[3], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)dst->src[0]->data + r * n;
    float *y = (float *)dst->data + r * n;
    const float inverse = inverse_rms(x, n, s.value);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(y + i, load(x + i) * inverse * load(gain + i));
    for (; i < n; i++) y[i] = x[i] * inverse * gain[i];
  }
}

// In how many parts the gain's gradient is summed, whatever the number of threads.
enum { GAIN_PARTS = 16 };

// src: gradient of the result, x, gain -> [rows + GAIN_PARTS, n]: the gradient of x, and parts of the sum that is the gain's
void KERNEL(rms_norm_back)(Tensor *dst, int ith, int nth, void *data) {
  const Settings s = {.pointer = data};
  const float *gain = dst->src[2]->data;
  const int64_t n = dst->ne[0], rows = dst->ne[1] - GAIN_PARTS;
  for (int part = ith; part < GAIN_PARTS; part += nth) {
    float *gain_sum = (float *)dst->data + (rows + part) * n;
    memset(gain_sum, 0, 4 * n);
    int64_t from, to;
    share_of(rows, part, GAIN_PARTS, &from, &to);
    for (int64_t r = from; r < to; r++) {
      const float *dy = (const float *)dst->src[0]->data + r * n, *x = (const float *)dst->src[1]->data + r * n;
      float *dx = (float *)dst->data + r * n;
      const float inverse = inverse_rms(x, n, s.value);
      vf total = (vf){0};
      int64_t i = 0;
      for (; i + VL <= n; i += VL) {
        const vf slope = load(dy + i), value = load(x + i);
        total += slope * load(gain + i) * value;
        store(gain_sum + i, load(gain_sum + i) + slope * value * inverse);
      }
      float sum = sum_of(total);
      for (; i < n; i++) {
        sum += dy[i] * gain[i] * x[i];
        gain_sum[i] += dy[i] * x[i] * inverse;
      }
      // with z = x / rms: dx = (gain dy - z mean(gain dy z)) / rms
      const float mean = sum / (float)n * inverse * inverse;
      for (i = 0; i + VL <= n; i += VL)
        store(dx + i, (load(dy + i) * load(gain + i) - load(x + i) * mean) * inverse);
      for (; i < n; i++) dx[i] = (dy[i] * gain[i] - x[i] * mean) * inverse;
    }
  }
}

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// src: gate, up -> silu(gate) up
void KERNEL(swiglu)(Tensor *dst, int ith, int nth, void *data) {
  (void)data;
  const float *gate = dst->src[0]->data, *up = dst->src[1]->data;
  float *out = dst->data;
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  for (; i < to; i += VL) {
    const vf x = row_at(gate, i, to, 0);
    put_row(out, i, to, x * sigmoid(x) * row_at(up, i, to, 0));
  }
}

// src: gradient of the result, gate, up -> the gradients of gate and up, one after the other
void KERNEL(swiglu_back)(Tensor *dst, int ith, int nth, void *data) {
  (void)data;
  const float *dy = dst->src[0]->data, *gate = dst->src[1]->data, *up = dst->src[2]->data;
  const int64_t n = count_of(dst->src[0]);
  float *dgate = dst->data, *dup = dgate + n;
  int64_t i, to;
  span_of(n, ith, nth, &i, &to);
  for (; i < to; i += VL) {
    const vf x = row_at(gate, i, to, 0), slope = row_at(dy, i, to, 0);
    const vf s = sigmoid(x);
    put_row(dup, i, to, slope * x * s);
    put_row(dgate, i, to, slope * row_at(up, i, to, 0) * s * (1.0f + x * (1.0f - s)));
  }
}
