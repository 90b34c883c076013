// Packing: operands of a product are copied, panel by panel, into the order in which the inner loop reads them, and converted
// on the way. Any layout goes in.
#pragma once
#include "simd.h"
#include "tensor.h"

// One matrix of a product: element (row, k) lies at data + row * row_stride + k * k_stride bytes.
typedef struct {
  const char *data;
  int32_t type;
  size_t row_stride, k_stride;
} Operand;

static inline size_t type_bytes(int32_t type) { return type == TYPE_F32 ? 4 : 2; }

static inline float widen(const char *p, int32_t type) {
  if (type == TYPE_F32) return *(const float *)p;
  uint16_t half;
  memcpy(&half, p, 2);
  if (type == TYPE_BF16) {
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
  }
  _Float16 value;
  memcpy(&value, p, 2);
  return (float)value;
}

// n numbers, `stride` bytes apart, as f32.
static inline void widen_all(const char *p, int32_t type, size_t stride, int n, float *out) {
  for (int i = 0; i < n; i++) out[i] = widen(p + i * stride, type);
}

// VL numbers that lie side by side, of which the first `valid` are there; zeros for the others.
static inline vf numbers_at(const char *p, int32_t type, int valid) {
  if (valid >= VL) {
    if (type == TYPE_F32) return load((const float *)p);
#if VL == 16
    if (type == TYPE_BF16)
      return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#endif
  }
  float values[VL] = {0};
  widen_all(p, type, type_bytes(type), valid < VL ? valid : VL, values);
  return load(values);
}

// VL words of a row from k on, `left` numbers being there: pairs of bf16, or f32 as it is.
static inline vu words_at(const char *p, int32_t type, int pairs, int64_t left) {
  if (!pairs) return (vu)numbers_at(p, type, left < VL ? (int)left : VL);
  if (left >= 2 * VL) {
    if (type == TYPE_BF16) return load_words(p);
    if (type == TYPE_F32) return pairs_of((const float *)p);
  }
  float values[2 * VL] = {0};
  widen_all(p, type, type_bytes(type), left < 2 * VL ? (int)left : 2 * VL, values);
  return pairs_of(values);
}

// How many words a panel has for kc terms.
static inline int words_for(int kc, int pairs) { return pairs ? (kc + 1) / 2 : kc; }

static inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Rows from r0 on, terms k0 .. k0 + kc, into panels of `width` rows: word q of row r of panel p at
// out[(p * words + q) * width + r]. Rows that are not there are zeros. Writes whole strips of VL rows.
static inline __attribute__((always_inline)) void pack(const Operand *x, int64_t r0, int rows, int64_t k0, int kc,
                                                       const int width, const int pairs, uint32_t *out) {
  const int words = words_for(kc, pairs), step = pairs ? 2 : 1;
  const int k_contiguous = x->k_stride == type_bytes(x->type);
  for (int s = 0; s < round_up(rows, width); s += VL) {
    const int valid = rows - s < VL ? rows - s : VL;
    const char *first = x->data + (r0 + s) * x->row_stride + k0 * x->k_stride;
    // a strip is a part of a panel, or spans several
    uint32_t *to = width >= VL ? out + (size_t)(s / width) * words * width + s % width : out + (size_t)s * words;
    vu block[VL];
    for (int q = 0; q < words; q += k_contiguous ? VL : 1) {
      const int count = k_contiguous ? (words - q < VL ? words - q : VL) : 1;
      if (k_contiguous) {
        for (int r = 0; r < VL; r++)
          block[r] = r < valid ? words_at(first + r * x->row_stride + q * step * x->k_stride, x->type, pairs, kc - q * step)
                               : (vu){0};
        transpose_words(block);
      } else if (x->row_stride == type_bytes(x->type)) {
        const char *p = first + q * step * x->k_stride;
        const vf even = numbers_at(p, x->type, valid);
        if (pairs) {
          const vf odd = q * 2 + 1 < kc ? numbers_at(p + x->k_stride, x->type, valid) : (vf){0};
          block[0] = pair_words(even, odd);
        } else
          block[0] = (vu)even;
      } else {
        float values[2][VL] = {{0}};
        for (int h = 0; h < step && q * step + h < kc; h++)
          widen_all(first + (q * step + h) * x->k_stride, x->type, x->row_stride, valid, values[h]);
        block[0] = pairs ? pair_words(load(values[0]), load(values[1])) : (vu)load(values[0]);
      }
      for (int i = 0; i < count; i++) {
        if (width >= VL)
          store_words(to + (size_t)(q + i) * width, block[i]);
        else
          for (int h = 0; h < VL / width; h++)
            memcpy(to + ((size_t)h * words + q + i) * width, (uint32_t *)&block[i] + h * width, 4 * width);
      }
    }
  }
}
