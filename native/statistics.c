// Statistics of activations for calibration, in one pass over memory.
#include "rows.h"

// src: x [batch * seq, size * channels] -> [batch, size]: for each sequence the square of the mean, over its positions, of the L2
// norm of each run of channels (of one channel: of its magnitude). Flags: the sequence's length.
OP(squared_means) {
  const Tensor *x = dst->src[0];
  const int64_t length = ((Settings){.pointer = data}).flags, size = dst->ne[0], batch = dst->ne[1];
  const int64_t channels = x->ne[0] / size;
  // a thread takes whole sequences, which are likely in its own cache, or columns where there are too few sequences
  const int by_sequence = batch >= nth;
  int64_t from = 0, to = size;
  if (!by_sequence) span_of(size, ith, nth, &from, &to);
  for (int64_t b = by_sequence ? ith : 0; b < batch && from < to; b += by_sequence ? nth : 1) {
    float *mean = (float *)dst->data + b * size;
    memset(mean + from, 0, 4 * (to - from));
    for (int64_t t = b * length; t < (b + 1) * length; t++) {
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
      mean[i] = value * value;
    }
  }
}

// src: x [rows, n], y [rows, n] -> [64]: the cosines of their rows, summed over 64 equal spans of rows
OP(cosines) {
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
      const double lengths = sqrt(sum_of(aa)) * sqrt(sum_of(bb));
      sum += lengths == 0 ? 0 : sum_of(ab) / lengths; // a row of zeros is like no other
    }
    ((float *)dst->data)[part] = (float)sum;
  }
}
