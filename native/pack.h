// Packing: operands of a product are copied, panel by panel, into the order in which the inner loop reads them, and converted at
// the same time. Operands may have any layout.
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
  return widen_half(half);
}

// n numbers, `stride` bytes apart, as f32.
static inline void widen_all(const char *p, int32_t type, size_t stride, int n, float *out) {
  for (int i = 0; i < n; i++) out[i] = widen(p + i * stride, type);
}

// VL adjacent numbers.
static inline __attribute__((always_inline)) vf numbers_at(const char *p, const int32_t type) {
  if (type == TYPE_F32) return load((const float *)p);
#if VL == 16
  const __m256i halves = _mm256_loadu_si256((const __m256i *)p);
  if (type == TYPE_BF16) return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
  return (vf)_mm512_cvtph_ps(halves);
#else
  float values[VL];
  widen_all(p, type, 2, VL, values);
  return load(values);
#endif
}

// The same where only the first `valid` exist; the others are zeros.
static inline vf some_numbers_at(const char *p, int32_t type, int valid) {
  if (valid <= 0) return (vf){0};
  if (valid >= VL) return numbers_at(p, type);
  float values[VL] = {0};
  widen_all(p, type, type_bytes(type), valid, values);
  return load(values);
}

// VL words of a row: pairs of bf16, or f32 as it is.
static inline __attribute__((always_inline)) vu words_at(const char *p, const int32_t type, const int pairs) {
  if (!pairs) return (vu)numbers_at(p, type);
  if (type == TYPE_BF16) return load_words(p);
  if (type == TYPE_F32) return pairs_of((const float *)p);
  float values[2 * VL];
  widen_all(p, type, 2, 2 * VL, values);
  return pairs_of(values);
}

// The same where only `left` numbers exist.
static inline vu some_words_at(const char *p, int32_t type, int pairs, int64_t left) {
  if (left >= (pairs ? 2 : 1) * VL) return words_at(p, type, pairs);
  if (!pairs) return (vu)some_numbers_at(p, type, (int)left);
  float values[2 * VL] = {0};
  widen_all(p, type, type_bytes(type), (int)left, values);
  return pairs_of(values);
}

static inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// The number of words in a panel for kc terms: whole tiles of pairs, or whole matrices. Words past the last term are zeros.
static inline int words_for(int kc, int pairs) {
  return pairs ? round_up((kc + 1) / 2, HAS_TILES ? 16 : HAS_MATRICES ? 2 : 1) : kc;
}

// The address of a strip of rows, which is part of a panel or spans several.
static inline uint32_t *strip_at(uint32_t *out, int s, int words, int width) {
  return width >= VL ? out + (size_t)(s / width) * words * width + s % width : out + (size_t)s * words;
}

static inline __attribute__((always_inline)) void put_strip(uint32_t *strip, int q, int words, const int width, vu v) {
  if (width >= VL)
    store_words(strip + (size_t)q * width, v);
  else
    for (int h = 0; h < VL / width; h++)
      memcpy(strip + ((size_t)h * words + q) * width, (uint32_t *)&v + h * width, 4 * width);
}

// The next rows are not prefetched when rows are this far apart: the cache would hold few of them.
#define LONG_ROW (16 << 10)

// How many words ahead adjacent strips are prefetched.
#define AHEAD 8

// How many strips are packed together where rows are adjacent in memory, so that whole cache lines are used.
#define GROUP 4

// Packs rows with adjacent terms: transposes blocks of VL rows by VL words.
static inline __attribute__((always_inline)) void pack_along_terms(const Operand *x, const char *corner, int rows, int kc,
                                                                   const int32_t type, const int width, const int pairs,
                                                                   uint32_t *out) {
  const int words = words_for(kc, pairs), step = pairs ? 2 : 1, bytes = type == TYPE_F32 ? 4 : 2;
  // what comes next: the same terms of the next rows, or, of long rows, the next terms
  const size_t ahead = x->row_stride < LONG_ROW ? VL * x->row_stride : 256;
  for (int s = 0; s < round_up(rows, width); s += VL) {
    const int valid = rows - s;
    const char *first = corner + s * x->row_stride;
    uint32_t *strip = strip_at(out, s, words, width);
    for (int q = 0; q < words; q += VL) {
      const char *p = first + (size_t)q * step * bytes;
      vu block[VL];
      if (valid >= VL && kc - q * step >= VL * step) {
        for (int r = 0; r < VL; r++) {
          __builtin_prefetch(p + r * x->row_stride + ahead);
          if (VL * step * bytes > 64) __builtin_prefetch(p + r * x->row_stride + ahead + 64);
          block[r] = words_at(p + r * x->row_stride, type, pairs);
        }
        transpose_words(block);
        for (int i = 0; i < VL; i++) put_strip(strip, q + i, words, width, block[i]);
      } else {
        for (int r = 0; r < VL; r++)
          block[r] = r < valid ? some_words_at(p + r * x->row_stride, type, pairs, kc - q * step) : (vu){0};
        transpose_words(block);
        for (int i = 0; i < VL && q + i < words; i++) put_strip(strip, q + i, words, width, block[i]);
      }
    }
  }
}

// Packs adjacent rows, term by term.
static inline __attribute__((always_inline)) void pack_across_terms(const Operand *x, const char *corner, int rows, int kc,
                                                                    const int32_t type, const int width, const int pairs,
                                                                    uint32_t *out) {
  const int words = words_for(kc, pairs), step = pairs ? 2 : 1, bytes = type == TYPE_F32 ? 4 : 2;
  const int all = round_up(rows, width);
  for (int g = 0; g < all; g += GROUP * VL)
    for (int q = 0; q < words; q++) {
      const int first = q * step < kc, second = pairs && q * 2 + 1 < kc;
      for (int s = g; s < all && s < g + GROUP * VL; s += VL) {
        const int valid = rows - s;
        const char *p = corner + (size_t)s * bytes + q * step * x->k_stride;
        __builtin_prefetch(p + AHEAD * step * x->k_stride);
        if (pairs) __builtin_prefetch(p + (AHEAD * step + 1) * x->k_stride);
        vf even = (vf){0}, odd = (vf){0};
        if (valid >= VL) {
          if (first) even = numbers_at(p, type);
          if (second) odd = numbers_at(p + x->k_stride, type);
        } else {
          if (first) even = some_numbers_at(p, type, valid);
          if (second) odd = some_numbers_at(p + x->k_stride, type, valid);
        }
        put_strip(strip_at(out, s, words, width), q, words, width, pairs ? pair_words(even, odd) : (vu)even);
      }
    }
}

// Packs any other layout, number by number.
static inline __attribute__((always_inline)) void pack_strided(const Operand *x, const char *corner, int rows, int kc,
                                                               const int width, const int pairs, uint32_t *out) {
  const int words = words_for(kc, pairs), step = pairs ? 2 : 1;
  for (int s = 0; s < round_up(rows, width); s += VL)
    for (int q = 0; q < words; q++) {
      float values[2][VL] = {{0}};
      const int valid = rows - s < VL ? rows - s : VL;
      for (int h = 0; h < step && q * step + h < kc; h++)
        widen_all(corner + s * x->row_stride + (q * step + h) * x->k_stride, x->type, x->row_stride, valid, values[h]);
      const vu word = pairs ? pair_words(load(values[0]), load(values[1])) : (vu)load(values[0]);
      put_strip(strip_at(out, s, words, width), q, words, width, word);
    }
}

// Rows from r0 on, terms k0 .. k0 + kc, into panels of `width` rows: word q of row r of panel p at
// out[(p * words + q) * width + r]. Missing rows are zeros. Writes whole strips of VL rows.
static inline __attribute__((always_inline)) void pack(const Operand *x, int64_t r0, int rows, int64_t k0, int kc,
                                                       const int width, const int pairs, uint32_t *out) {
  const char *const corner = x->data + r0 * x->row_stride + k0 * x->k_stride;
  const int along = x->k_stride == type_bytes(x->type), across = x->row_stride == type_bytes(x->type);
  if (!along && !across)
    pack_strided(x, corner, rows, kc, width, pairs, out);
  else if (x->type == TYPE_F32 && along)
    pack_along_terms(x, corner, rows, kc, TYPE_F32, width, pairs, out);
  else if (x->type == TYPE_F32)
    pack_across_terms(x, corner, rows, kc, TYPE_F32, width, pairs, out);
  else if (x->type == TYPE_BF16 && along)
    pack_along_terms(x, corner, rows, kc, TYPE_BF16, width, pairs, out);
  else if (x->type == TYPE_BF16)
    pack_across_terms(x, corner, rows, kc, TYPE_BF16, width, pairs, out);
  else if (along)
    pack_along_terms(x, corner, rows, kc, TYPE_F16, width, pairs, out);
  else
    pack_across_terms(x, corner, rows, kc, TYPE_F16, width, pairs, out);
}

#if HAS_MATRICES
// Reorders panels of pairs: words q and q + 1 of a row, for even q, become neighbors, so that 4 words are 2 rows of 4 terms.
static inline void pack_matrices(int rows, int words, const int width, uint32_t *out) {
  for (int p = 0; p < rows; p += width)
    for (int q = 0; q < words; q += 2, out += 2 * width) {
      vu first[8], second[8];
      for (int i = 0; i < width / VL; i++) {
        first[i] = load_words(out + i * VL);
        second[i] = load_words(out + width + i * VL);
      }
      for (int i = 0; i < width / VL; i++) {
        store_words(out + 2 * i * VL, (vu)vzip1q_u32((uint32x4_t)first[i], (uint32x4_t)second[i]));
        store_words(out + (2 * i + 1) * VL, (vu)vzip2q_u32((uint32x4_t)first[i], (uint32x4_t)second[i]));
      }
    }
}
#endif
