// What calibration takes from activations, in one pass over them.
#include "rows.h"

// dst[i] += sum over sequences of the square of the mean, over the sequence, of the L2 norm of run i of channels (of one
// channel: of its magnitude). In place on the sums [1, size]. src: sums, x [batch * seq, size * channels]. Flags: the
// sequence's length.
void KERNEL(add_magnitudes)(Tensor *dst, int ith, int nth, void *data) {
  const Tensor *x = dst->src[1];
  const int64_t length = ((Settings){.pointer = data}).flags, size = dst->ne[0], channels = x->ne[0] / size;
  int64_t from, to; // each thread has columns of its own
  span_of(size, ith, nth, &from, &to);
  if (from >= to) return;
  float *const mean = coppice_scratch(SCRATCH_1, 4 * size), *const sums = dst->data;
  for (int64_t first = 0; first < x->ne[1]; first += length) {
    memset(mean + from, 0, 4 * (to - from));
    for (int64_t t = first; t < first + length; t++) {
      const float *row = (const float *)x->data + t * x->ne[0];
      if (channels == 1) {
        int64_t i = from;
        for (; i + VL <= to; i += VL) {
          const vf v = load(row + i);
          store(mean + i, load(mean + i) + vmax(v, -v));
        }
        for (; i < to; i++) mean[i] += fabsf(row[i]);
      } else
        for (int64_t i = from; i < to; i++) {
          vf total = (vf){0};
          for (int64_t c = 0; c < channels; c += VL) {
            const vf v = row_at(row + i * channels, c, channels, 0);
            total += v * v;
          }
          mean[i] += sqrtf(sum_of(total));
        }
    }
    for (int64_t i = from; i < to; i++) {
      const float value = mean[i] / (float)length;
      sums[i] += value * value;
    }
  }
}

// src: x [rows, n], y [rows, n] -> [64]: the cosines of their rows, summed over 64 equal spans of rows
void KERNEL(cosines)(Tensor *dst, int ith, int nth, void *data) {
  (void)data;
  const Tensor *x = dst->src[0], *y = dst->src[1];
  const int64_t n = x->ne[0];
  for (int part = ith; part < 64; part += nth) {
    int64_t from, to;
    share_of(x->ne[1], part, 64, &from, &to);
    double sum = 0;
    for (int64_t r = from; r < to; r++) {
      const float *a = (const float *)x->data + r * n, *b = (const float *)y->data + r * n;
      vf ab = (vf){0}, aa = (vf){0}, bb = (vf){0};
      for (int64_t i = 0; i < n; i += VL) {
        const vf u = row_at(a, i, n, 0), v = row_at(b, i, n, 0);
        ab += u * v;
        aa += u * u;
        bb += v * v;
      }
      sum += sum_of(ab) / (sqrt(sum_of(aa)) * sqrt(sum_of(bb)));
    }
    ((float *)dst->data)[part] = (float)sum;
  }
}
