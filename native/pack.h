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

// The scales of VL rows of integers, and what undoes them. The sum of products of two rows a and b is at most |a| |b| (Cauchy and
// Schwarz), so that rows no longer than the root of 2^31 never overflow it: far finer than a bound by the largest numbers. Rounded to
// multiples of |a| / 46340, or twice that, terms change a sum by less than bf16 does, unless the other row is nearly zero just where this one
// has an outlier.
typedef struct {
  vf scale, inverse;
} Scales;

static inline Scales scales_for(vf squares, vf largest, int terms) {
  const float shortest = 1e-30f; // rows of smaller numbers count as zeros
  const float length = 46339.0f - 0.5f * sqrtf((float)terms) - (float)terms / 512; // without what rounding may add
  // squares of very small or large numbers are none
  const vi exact = (squares > splat(1e-24f)) & (squares < splat(1e37f));
  const vf norm = vmax(where(exact, vsqrt(squares), largest * sqrtf((float)terms)), largest * (length / 32767.0f));
  const vi zero = largest < splat(shortest), finite = largest < splat(INFINITY), number = squares == squares;
  const vf none = (vf){0};
  // a power of two, so that numbers of few digits stay exact
  const vf scale = (vf)((vu)(length / norm) & 0x7f800000u);
  return (Scales){where(zero, none, scale), where(finite & number, where(zero, none, 1.0f / scale), splat(NAN))};
}

static inline void measure(vf v, vf *squares, vf *largest) {
  *squares = vfma(v, v, *squares);
  *largest = vmax(*largest, vabs(v));
}

// Words of one pair of each row.
static inline vu pair_of(vf even, vf odd, vf scale) {
  (void)scale;
#if HAS_INTEGERS
  return integer_words(even * scale, odd * scale);
#else
  return pair_words(even, odd);
#endif
}

// VL words of a row: pairs, or f32 as it is. scale: of integers
static inline __attribute__((always_inline)) vu words_at(const char *p, const int32_t type, const int pairs, float scale) {
  (void)scale;
  if (!pairs) return (vu)numbers_at(p, type);
#if HAS_INTEGERS
  return integers_of(numbers_at(p, type) * scale, numbers_at(p + VL * (type == TYPE_F32 ? 4 : 2), type) * scale);
#endif
  if (type == TYPE_BF16) return load_words(p);
  if (type == TYPE_F32) return pairs_of((const float *)p);
  float values[2 * VL];
  widen_all(p, type, 2, 2 * VL, values);
  return pairs_of(values);
}

// The same where only `left` numbers exist.
static inline vu some_words_at(const char *p, int32_t type, int pairs, int64_t left, float scale) {
  if (left >= (pairs ? 2 : 1) * VL) return words_at(p, type, pairs, scale);
  if (!pairs) return (vu)some_numbers_at(p, type, (int)left);
#if HAS_INTEGERS
  return integers_of(some_numbers_at(p, type, (int)left) * scale,
                     some_numbers_at(p + VL * type_bytes(type), type, (int)left - VL) * scale);
#endif
  float values[2 * VL] = {0};
  widen_all(p, type, type_bytes(type), (int)left, values);
  return pairs_of(values);
}

static inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// The number of words in a panel for kc terms: whole tiles of pairs, or whole matrices. Words past the last term are zeros. After
// pairs of integers comes a word more, what undoes the row's scale.
static inline int words_for(int kc, int pairs) {
  return pairs ? round_up((kc + 1) / 2, HAS_TILES ? 16 : HAS_MATRICES ? 2 : 1) + HAS_INTEGERS : kc;
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

// The scales of VL rows with adjacent terms, of which `valid` exist.
static inline __attribute__((always_inline)) Scales scales_along_terms(const char *first, size_t row_stride, int valid, int kc,
                                                                       const int32_t type) {
  enum { TOGETHER = 4 }; // rows, so that their sums do not wait for each other
  float squares[VL] = {0}, largest[VL] = {0};
  for (int r = 0; r < VL && r < valid; r += TOGETHER) {
    const int rows = valid - r < TOGETHER ? valid - r : TOGETHER;
    const char *p = first + r * row_stride;
    vf sum[TOGETHER] = {{0}}, most[TOGETHER] = {{0}};
    int k = 0;
    for (; rows == TOGETHER && k + VL <= kc; k += VL, p += VL * (type == TYPE_F32 ? 4 : 2))
      for (int i = 0; i < TOGETHER; i++) measure(numbers_at(p + i * row_stride, type), &sum[i], &most[i]);
    for (; k < kc; k += VL, p += VL * (type == TYPE_F32 ? 4 : 2))
      for (int i = 0; i < rows; i++) measure(some_numbers_at(p + i * row_stride, type, kc - k), &sum[i], &most[i]);
    for (int i = 0; i < rows; i++) {
      squares[r + i] = sum_of(sum[i]);
      largest[r + i] = max_of(most[i]);
    }
  }
  return scales_for(load(squares), load(largest), kc);
}

// The same of up to GROUP strips of adjacent rows.
static inline __attribute__((always_inline)) void scales_across_terms(const char *corner, size_t k_stride, int rows, int kc,
                                                                      const int32_t type, Scales out[GROUP]) {
  vf squares[GROUP] = {{0}}, largest[GROUP] = {{0}};
  const size_t bytes = VL * (type == TYPE_F32 ? 4 : 2);
  if (rows >= GROUP * VL)
    for (int k = 0; k < kc; k++, corner += k_stride)
#pragma GCC unroll 4
      for (int i = 0; i < GROUP; i++) {
        __builtin_prefetch(corner + 2 * AHEAD * k_stride + i * bytes);
        measure(numbers_at(corner + i * bytes, type), &squares[i], &largest[i]);
      }
  else
    for (int k = 0; k < kc; k++, corner += k_stride)
      for (int i = 0; i < GROUP; i++)
        measure(some_numbers_at(corner + i * bytes, type, rows - i * VL), &squares[i], &largest[i]);
  for (int i = 0; i < GROUP; i++) out[i] = scales_for(squares[i], largest[i], kc);
}

// The same of VL rows of any layout.
static inline Scales scales_strided(const Operand *x, const char *first, int valid, int kc) {
  vf squares = (vf){0}, largest = (vf){0};
  for (int k = 0; k < kc; k++) {
    float values[VL] = {0};
    widen_all(first + k * x->k_stride, x->type, x->row_stride, valid, values);
    measure(load(values), &squares, &largest);
  }
  return scales_for(squares, largest, kc);
}

// Packs rows with adjacent terms: transposes blocks of VL rows by VL words.
static inline __attribute__((always_inline)) void pack_along_terms(const Operand *x, const char *corner, int rows, int kc,
                                                                   const int32_t type, const int width, const int pairs,
                                                                   uint32_t *out) {
  const int all_words = words_for(kc, pairs), scaled = HAS_INTEGERS && pairs, words = all_words - scaled;
  const int step = pairs ? 2 : 1, bytes = type == TYPE_F32 ? 4 : 2;
  // what comes next: the same terms of the next rows, or, of long rows, the next terms
  const size_t ahead = x->row_stride < LONG_ROW ? VL * x->row_stride : 256;
  for (int s = 0; s < round_up(rows, width); s += VL) {
    const int valid = rows - s;
    const char *first = corner + s * x->row_stride;
    uint32_t *strip = strip_at(out, s, all_words, width);
    float scales[VL] = {0};
    if (scaled) {
      const Scales found = scales_along_terms(first, x->row_stride, valid, kc, type);
      store(scales, found.scale);
      put_strip(strip, words, all_words, width, (vu)found.inverse);
    }
    for (int q = 0; q < words; q += VL) {
      const char *p = first + (size_t)q * step * bytes;
      vu block[VL];
      if (valid >= VL && kc - q * step >= VL * step) {
        for (int r = 0; r < VL; r++) {
          __builtin_prefetch(p + r * x->row_stride + ahead);
          if (VL * step * bytes > 64) __builtin_prefetch(p + r * x->row_stride + ahead + 64);
          block[r] = words_at(p + r * x->row_stride, type, pairs, scales[r]);
        }
        transpose_words(block);
        for (int i = 0; i < VL; i++) put_strip(strip, q + i, all_words, width, block[i]);
      } else {
        for (int r = 0; r < VL; r++)
          block[r] = r < valid ? some_words_at(p + r * x->row_stride, type, pairs, kc - q * step, scales[r]) : (vu){0};
        transpose_words(block);
        for (int i = 0; i < VL && q + i < words; i++) put_strip(strip, q + i, all_words, width, block[i]);
      }
    }
  }
}

// Packs adjacent rows, term by term.
static inline __attribute__((always_inline)) void pack_across_terms(const Operand *x, const char *corner, int rows, int kc,
                                                                    const int32_t type, const int width, const int pairs,
                                                                    uint32_t *out) {
  const int all_words = words_for(kc, pairs), scaled = HAS_INTEGERS && pairs, words = all_words - scaled;
  const int step = pairs ? 2 : 1, bytes = type == TYPE_F32 ? 4 : 2;
  const int all = round_up(rows, width);
  for (int g = 0; g < all; g += GROUP * VL) {
    Scales scales[GROUP] = {{{0}, {0}}};
    if (scaled) {
      scales_across_terms(corner + (size_t)g * bytes, x->k_stride, rows - g, kc, type, scales);
      for (int s = g; s < all && s < g + GROUP * VL; s += VL)
        put_strip(strip_at(out, s, all_words, width), words, all_words, width, (vu)scales[(s - g) / VL].inverse);
    }
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
        put_strip(strip_at(out, s, all_words, width), q, all_words, width,
                  pairs ? pair_of(even, odd, scales[(s - g) / VL].scale) : (vu)even);
      }
    }
  }
}

// Packs any other layout, number by number.
static inline __attribute__((always_inline)) void pack_strided(const Operand *x, const char *corner, int rows, int kc,
                                                               const int width, const int pairs, uint32_t *out) {
  const int all_words = words_for(kc, pairs), scaled = HAS_INTEGERS && pairs, words = all_words - scaled;
  const int step = pairs ? 2 : 1;
  for (int s = 0; s < round_up(rows, width); s += VL) {
    const int valid = rows - s < VL ? rows - s : VL;
    uint32_t *strip = strip_at(out, s, all_words, width);
    Scales scales = {{0}, {0}};
    if (scaled) {
      scales = scales_strided(x, corner + s * x->row_stride, valid, kc);
      put_strip(strip, words, all_words, width, (vu)scales.inverse);
    }
    for (int q = 0; q < words; q++) {
      float values[2][VL] = {{0}};
      for (int h = 0; h < step && q * step + h < kc; h++)
        widen_all(corner + s * x->row_stride + (q * step + h) * x->k_stride, x->type, x->row_stride, valid, values[h]);
      const vu word = pairs ? pair_of(load(values[0]), load(values[1]), scales.scale) : (vu)load(values[0]);
      put_strip(strip, q, all_words, width, word);
    }
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
