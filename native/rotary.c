// Rotary position embedding (Su et al. 2021, eq. 34).
#include "rows.h"

enum { ROTARY_BACKWARDS = 1, ROTARY_INTERLEAVED = 2 };

// src: x [batch, sequence, heads, headDim], table [sequence, 2, half]: cosines and sines -> x rotated, or rotated back. Pairs
// are channels i and i + half, or 2i and 2i + 1. Channels after the rotated ones are copied.
OP(rope) {
  const Tensor *x = dst->src[0], *table = dst->src[1];
  const uint32_t flags = ((Settings){.pointer = data}).flags;
  const float sign = flags & ROTARY_BACKWARDS ? -1 : 1;
  const int64_t half = table->ne[0], dim = x->ne[0], heads = x->ne[1], length = x->ne[2];
  int64_t from, to;
  share_of(length * x->ne[3], ith, nth, &from, &to);
  for (int64_t position = from; position < to; position++) {
    const float *cosines = (const float *)table->data + position % length * 2 * half, *sines = cosines + half;
    for (int64_t h = 0; h < heads; h++) {
      const float *in = (const float *)((const char *)x->data + position / length * x->nb[3] + position % length * x->nb[2] +
                                        h * x->nb[1]);
      float *out = (float *)dst->data + (position * heads + h) * dim;
      for (int64_t i = 0; flags & ROTARY_INTERLEAVED && i < half; i++) {
        const float a = in[2 * i], b = in[2 * i + 1], c = cosines[i], s = sines[i] * sign;
        out[2 * i] = a * c - b * s;
        out[2 * i + 1] = a * s + b * c;
      }
      for (int64_t i = 0; !(flags & ROTARY_INTERLEAVED) && i < half; i += VL) {
        const vf c = row_at(cosines, i, half, 0), s = row_at(sines, i, half, 0) * sign;
        const vf a = row_at(in, i, half, 0), b = row_at(in + half, i, half, 0);
        put_row(out, i, half, a * c - b * s);
        put_row(out + half, i, half, a * s + b * c);
      }
      for (int64_t i = 2 * half; i < dim; i++) out[i] = in[i];
    }
  }
}
