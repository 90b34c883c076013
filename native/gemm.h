// Matrix products of packed panels. Panels are as wide as the registers allow: MR x NR results stay in registers.
#pragma once
#include "tiles.h"

#define MV 3         // vectors of rows
#define MR (MV * VL) // rows of the vectorized operand
#define NR (VL == 4 ? 8 : VL / 2)

#define KC 256 // words in a block of the sum: a panel of a stays in the first-level cache
#define MC (4 * MR)
#define NC 1024
#define KEPT MC // rows of a that stay packed for all of b

// The same for products of pairs.
#if HAS_TILES
#define PAIR_MR 32
#define PAIR_NR 32
#define PAIR_KC 512 // sums are read and written once per block
#define PAIR_MC 256
#define PAIR_NC 1024
#else
#define PAIR_MR MR
#define PAIR_NR NR
#define PAIR_KC KC
#define PAIR_MC MC
#define PAIR_NC NC
#endif
// where packing takes as long as the product with a few hundred rows
#define PAIR_KEPT (HAS_TILES || HAS_INTEGERS ? 2048 : KEPT)

// Rows of a panel of either operand.
static inline int width_a(int pairs) { return pairs ? PAIR_MR : MR; }
static inline int width_b(int pairs) { return pairs ? PAIR_NR : NR; }

#if HAS_MATRICES
// total[n] = sums of products of pairs, two rows of either panel at a time.
static inline __attribute__((always_inline)) void multiply_matrices(int words, const uint32_t *a, const uint32_t *b,
                                                                    vf total[NR][MV]) {
  float32x4_t sums[NR / 2][MR / 2]; // row n of m and m + 1, then row n + 1
  for (int j = 0; j < NR / 2; j++)
    for (int i = 0; i < MR / 2; i++) sums[j][i] = vdupq_n_f32(0);
  for (int q = 0; q < words; q += 2, a += 2 * MR, b += 2 * NR) {
    vu av[MR / 2];
    for (int i = 0; i < MR / 2; i++) av[i] = load_words(a + 4 * i);
#pragma GCC unroll 4
    for (int j = 0; j < NR / 2; j++) {
      const vu bv = load_words(b + 4 * j);
      for (int i = 0; i < MR / 2; i++) sums[j][i] = vbfmmlaq_f32(sums[j][i], (bfloat16x8_t)bv, (bfloat16x8_t)av[i]);
    }
  }
  for (int j = 0; j < NR / 2; j++)
    for (int i = 0; i < MV; i++) {
      const float32x4_t left = sums[j][2 * i], right = sums[j][2 * i + 1];
      total[2 * j][i] = (vf)vcombine_f32(vget_low_f32(left), vget_low_f32(right));
      total[2 * j + 1][i] = (vf)vcombine_f32(vget_high_f32(left), vget_high_f32(right));
    }
}
#endif

#if HAS_INTEGERS
// total[n] = sums of products of pairs of integers, at the scales of both rows.
static inline __attribute__((always_inline)) void multiply_integers(int words, const uint32_t *a, const uint32_t *a_scales,
                                                                    const uint32_t *b, vf total[NR][MV]) {
  vi sums[NR][MV];
#pragma GCC unroll 8
  for (int j = 0; j < NR; j++)
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++) sums[j][i] = (vi){0};
  for (int q = 0; q < words; q++, a += MR, b += NR) {
    vu av[MV];
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++) av[i] = load_words(a + i * VL);
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) {
      const vu bv = splat_word(b[j]);
#pragma GCC unroll 3
      for (int i = 0; i < MV; i++) sums[j][i] = dot_integers(sums[j][i], av[i], bv);
#if VL == 8 && defined(__clang__)
      for (int i = 0; i < MV; i++) __asm__ volatile("" : "+x"(sums[j][i]) : : "memory"); // as below
#endif
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < NR; j++)
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++)
      total[j][i] = widen_integers(sums[j][i]) * (vf)load_words(a_scales + i * VL) * ((const float *)b)[j];
}
#endif

// total[n] = sum over words of a[m] * b[n]. a_scales: of pairs of integers; those of b are its last word
static inline __attribute__((always_inline)) void multiply_words(const int pairs, int words, const uint32_t *a,
                                                                 const uint32_t *a_scales, const uint32_t *b, vf total[NR][MV]) {
  (void)pairs, (void)a_scales; // unused without products of pairs
#if HAS_INTEGERS
  if (pairs) {
    multiply_integers(words - 1, a, a_scales, b, total);
    return;
  }
#endif
#if HAS_MATRICES
  if (pairs) {
    multiply_matrices(words, a, b, total);
    return;
  }
#endif
#pragma GCC unroll 8
  for (int j = 0; j < NR; j++)
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++) total[j][i] = (vf){0};
  for (int q = 0; q < words; q++, a += MR, b += NR) {
    vu av[MV];
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++) av[i] = load_words(a + i * VL);
#pragma GCC unroll 8
    for (int j = 0; j < NR; j++) {
#if HAS_BF16_DOT && !HAS_TILES
      if (pairs) {
        const vu bv = splat_word(b[j]);
#pragma GCC unroll 3
        for (int i = 0; i < MV; i++) total[j][i] = dot_pairs(total[j][i], av[i], bv);
        continue;
      }
#endif
      const vf bv = splat(((const float *)b)[j]);
      for (int i = 0; i < MV; i++) total[j][i] += (vf)av[i] * bv;
#if VL == 8 && defined(__clang__)
      // the 16 registers are just enough: it would load the next number of b before these sums, and keep one of them in memory
      for (int i = 0; i < MV; i++) __asm__ volatile("" : "+x"(total[j][i]) : : "memory");
#endif
    }
  }
}

// One MR x NR tile: c[n * ldc + m] (+)= sum over words of a[m] * b[n].
static inline __attribute__((always_inline)) void tile(const int pairs, int words, const uint32_t *a, const uint32_t *a_scales,
                                                       const uint32_t *b, float *c, int64_t ldc, int add) {
  vf total[NR][MV];
  multiply_words(pairs, words, a, a_scales, b, total);
#pragma GCC unroll 8
  for (int j = 0; j < NR; j++)
#pragma GCC unroll 3
    for (int i = 0; i < MV; i++) {
      float *p = c + j * ldc + i * VL;
      store(p, add ? load(p) + total[j][i] : total[j][i]);
    }
}

// The first m x n results of a tile. Apart from whole tiles, whose results then stay in registers.
static __attribute__((noinline)) void partial_tile(const int pairs, int words, const uint32_t *a, const uint32_t *a_scales,
                                                   const uint32_t *b, float *c, int64_t ldc, int m, int n, int add) {
  vf total[NR][MV];
  if (pairs)
    multiply_words(1, words, a, a_scales, b, total);
  else
    multiply_words(0, words, a, a_scales, b, total);
  for (int j = 0; j < n; j++)
    for (int i = 0; i * VL < m; i++) {
      float *p = c + j * ldc + i * VL;
      const int left = m - i * VL < VL ? m - i * VL : VL;
      store_part(p, add ? load_part(p, left, 0) + total[j][i] : total[j][i], left);
    }
}

// All tiles of packed a (m rows) and b (n rows). Panels of a are `a_words` words apart, which may be more than `words`; their words
// from `first` on are multiplied.
// A tile whose first row of a is more than `last` after its last row of b is left out.
#define WHOLE INT32_MAX // leaves none out
static void multiply_panels(int pairs, int words, const uint32_t *a, int a_words, int first, int m, const uint32_t *b, int n,
                            float *c, int64_t ldc, int add, int64_t last, int past_caches) {
  (void)pairs, (void)past_caches; // only tiles are fast enough to wait for stores
#if HAS_TILES
  if (pairs) {
    multiply_tiles(words, a + (size_t)first * PAIR_MR, a_words, m, b, n, c, ldc, add, last, past_caches);
    return;
  }
#endif
  for (int i = 0; i < m; i += MR)
    for (int j = 0; j < n; j += NR) {
      const int mi = m - i < MR ? m - i : MR, nj = n - j < NR ? n - j : NR;
      if (i > last + j + nj - 1) continue;
      const uint32_t *panel = a + (size_t)i * a_words, *ai = panel + (size_t)first * MR, *a_scales = panel + (size_t)(a_words - 1) * MR;
      const uint32_t *bj = b + (size_t)j * words;
      float *cij = c + j * ldc + i;
      if (mi < MR || nj < NR)
        partial_tile(pairs, words, ai, a_scales, bj, cij, ldc, mi, nj, add);
      else if (HAS_PAIRS && !HAS_TILES && pairs)
        tile(1, words, ai, a_scales, bj, cij, ldc, add);
      else
        tile(0, words, ai, a_scales, bj, cij, ldc, add);
    }
}

static void pack_a(const Operand *x, int64_t r0, int rows, int64_t k0, int kc, int pairs, uint32_t *out) {
  (void)pairs;
#if HAS_PAIRS
  if (pairs) {
    pack(x, r0, rows, k0, kc, PAIR_MR, 1, out);
#if HAS_MATRICES
    pack_matrices(rows, words_for(kc, 1), PAIR_MR, out);
#endif
    return;
  }
#endif
  pack(x, r0, rows, k0, kc, MR, 0, out);
}

static void pack_b(const Operand *x, int64_t r0, int rows, int64_t k0, int kc, int pairs, uint32_t *out) {
  (void)pairs;
#if HAS_TILES
  if (pairs) {
    pack_tiles(x, r0, rows, k0, kc, out);
    return;
  }
#elif HAS_PAIRS
  if (pairs) {
    pack(x, r0, rows, k0, kc, NR, 1, out);
#if HAS_MATRICES
    pack_matrices(rows, words_for(kc, 1), NR, out);
#endif
    return;
  }
#endif
  pack(x, r0, rows, k0, kc, NR, 0, out);
}

// Bytes for packed rows, whole strips included.
static inline size_t panel_bytes(int rows, int width, int words) {
  return (size_t)4 * words * (round_up(rows, width) + VL);
}

// c[n * ldc + m] (+)= sum over k of a(m, k) * b(n, k), for m in [m0, m1) and n in [n0, n1).
// lower: what lies above the diagonal, m > n, may be left out; past_caches: the results are read much later
static void multiply(const Operand *a, int64_t m0, int64_t m1, const Operand *b, int64_t n0, int64_t n1, int64_t k, float *c,
                     int64_t ldc, int pairs, int add, int lower, int past_caches) {
  const int most_m = pairs ? PAIR_MC : MC, most_n = pairs ? PAIR_NC : NC, step = pairs ? 2 * PAIR_KC : KC;
  const int keeps = m1 - m0 <= (pairs ? PAIR_KEPT : KEPT);
  uint32_t *pa = coppice_scratch(SCRATCH_A, panel_bytes(keeps ? (int)(m1 - m0) : most_m, width_a(pairs), words_for(step, pairs)));
  uint32_t *pb = coppice_scratch(SCRATCH_B, panel_bytes(most_n, width_b(pairs), words_for(step, pairs)));
  for (int64_t k0 = 0; k0 < k; k0 += step) {
    const int kc = k - k0 < step ? (int)(k - k0) : step, words = words_for(kc, pairs);
    int64_t packed = m0; // where the kept rows end
    for (int64_t n = n0; n < n1; n += most_n) {
      const int nc = n1 - n < most_n ? (int)(n1 - n) : most_n;
      pack_b(b, n, nc, k0, kc, pairs, pb);
      const int64_t m_end = lower && n + nc < m1 ? n + nc : m1;
      for (int64_t m = m0; m < m_end; m += most_m) {
        const int mc = m1 - m < most_m ? (int)(m1 - m) : most_m;
        uint32_t *at = keeps ? pa + (m - m0) * words : pa;
        if (!keeps || m >= packed) pack_a(a, m, mc, k0, kc, pairs, at);
        if (m >= packed) packed = m + mc;
        multiply_panels(pairs, words, at, words, 0, mc, pb, nc, c + n * ldc + m, ldc, add || k0 > 0,
                        lower ? n - m : WHOLE, past_caches && k <= step);
      }
    }
  }
}
