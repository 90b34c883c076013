// Normalization of rows with a gain: by the root mean square (Zhang & Sennrich 2019, eq. 4), or, where flags are 1, after
// subtracting the mean (layer normalization, Ba et al. 2016, eq. 4).
#include "rows.h"

static float mean_of(const float *x, int64_t n) {
  vf total[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL)
    for (int j = 0; j < 4; j++) total[j] += load(x + i + j * VL);
  float sum = sum_of((total[0] + total[1]) + (total[2] + total[3]));
  for (; i < n; i++) sum += x[i];
  return sum / (float)n;
}

static float inverse_rms(const float *x, int64_t n, float mean, float epsilon) {
  vf total[4] = {{0}};
  int64_t i = 0;
  for (; i + 4 * VL <= n; i += 4 * VL)
    for (int j = 0; j < 4; j++) {
      const vf v = load(x + i + j * VL) - mean;
      total[j] += v * v;
    }
  float sum = sum_of((total[0] + total[1]) + (total[2] + total[3]));
  for (; i < n; i++) sum += (x[i] - mean) * (x[i] - mean);
  return 1 / sqrtf(sum / (float)n + epsilon);
}

// src: x [rows, n], gain [n] -> (x - mean) / rms(x - mean) * gain
OP(norm) {
  const Settings s = {.pointer = data};
  const float *gain = dst->src[1]->data;
  const int64_t n = dst->ne[0];
  int64_t from, to;
  share_of(dst->ne[1] * dst->ne[2] * dst->ne[3], ith, nth, &from, &to);
  for (int64_t r = from; r < to; r++) {
    const float *x = (const float *)dst->src[0]->data + r * n;
    float *y = (float *)dst->data + r * n;
    const float mean = s.flags ? mean_of(x, n) : 0, inverse = inverse_rms(x, n, mean, s.value);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store(y + i, (load(x + i) - mean) * inverse * load(gain + i));
    for (; i < n; i++) y[i] = (x[i] - mean) * inverse * gain[i];
  }
}

// The number of partial sums of the gain's gradient, independent of the number of threads.
enum { GAIN_PARTS = 16 };

// src: gradient of the result, x, gain -> [rows + GAIN_PARTS, n]: the gradient of x, then partial sums of the gain's
OP(norm_back) {
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
      const float mean = s.flags ? mean_of(x, n) : 0, inverse = inverse_rms(x, n, mean, s.value);
      vf products = (vf){0}, slopes = (vf){0};
      int64_t i = 0;
      for (; i + VL <= n; i += VL) {
        const vf slope = load(dy + i), value = load(x + i) - mean, scaled = slope * load(gain + i);
        products += scaled * value;
        slopes += scaled;
        store(gain_sum + i, load(gain_sum + i) + slope * value * inverse);
      }
      float product = sum_of(products), slope = sum_of(slopes);
      for (; i < n; i++) {
        product += dy[i] * gain[i] * (x[i] - mean);
        slope += dy[i] * gain[i];
        gain_sum[i] += dy[i] * (x[i] - mean) * inverse;
      }
      // with z = (x - mean) / rms: dx = (gain dy - mean(gain dy) - z mean(gain dy z)) / rms; without mean(gain dy) where x keeps its
      // mean
      const float along = product / (float)n * inverse * inverse, level = s.flags ? slope / (float)n : 0;
      for (i = 0; i + VL <= n; i += VL)
        store(dx + i, (load(dy + i) * load(gain + i) - level - (load(x + i) - mean) * along) * inverse);
      for (; i < n; i++) dx[i] = (dy[i] * gain[i] - level - (x[i] - mean) * along) * inverse;
    }
  }
}
