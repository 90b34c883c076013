// Vectors of the instruction set that this file is compiled for. GCC's and clang's vector extensions cover arithmetic; this file
// adds what they lack, for each instruction set.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define VL 8
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#define VL 4
#else
#error "no kernels for this instruction set"
#endif

#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

// Products of 2 x 4 with 4 x 2 bf16 at once (Arm Architecture Reference Manual, BFMMLA).
#if defined(BF16_MATRICES) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define HAS_MATRICES 1
#else
#define HAS_MATRICES 0
#endif

#if defined(__AMX_BF16__) || defined(EMULATE_TILES)
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

// Pairs of 16-bit integers, each row with a scale, and sums of 32 bits: for processors whose bf16 instructions are slow or none.
#if defined(INTEGER_PAIRS)
#define HAS_INTEGERS 1
#else
#define HAS_INTEGERS 0
#endif

#define HAS_PAIRS (HAS_BF16_DOT || HAS_TILES || HAS_INTEGERS) // products of pairs of 16-bit numbers

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
typedef float vf_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef uint32_t vu_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));

// Inside of kernels, numbers nearer to 0 than the normal ones count as 0. Intel's processors take a hundred times as long for a vector
// with one of them, and moments that decay stay there forever: 0.9 of the smallest number is rounded up to it. The caller's arithmetic,
// which may be JavaScript's, is left as it was.
#if VL >= 8
typedef uint32_t FloatControl;
static inline void set_float_control(FloatControl control) { _mm_setcsr(control); }
static inline FloatControl flush_subnormals(void) {
  enum { SUBNORMALS_ARE_ZERO = 1 << 6, FLUSH_TO_ZERO = 1 << 15 };
  const FloatControl before = _mm_getcsr();
  set_float_control(before | SUBNORMALS_ARE_ZERO | FLUSH_TO_ZERO);
  return before;
}
#else
typedef uint64_t FloatControl;
static inline void set_float_control(FloatControl control) { __asm__ volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
static inline FloatControl flush_subnormals(void) {
  const FloatControl flush_to_zero = 1 << 24;
  FloatControl before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  set_float_control(before | flush_to_zero);
  return before;
}
#endif

static inline vf load(const float *p) { return *(const vf_unaligned *)p; }
static inline void store(float *p, vf v) { *(vf_unaligned *)p = v; }
static inline vu load_words(const void *p) { return *(const vu_unaligned *)p; }
static inline void store_words(void *p, vu v) { *(vu_unaligned *)p = v; }
// The same without a place in the caches, where there are such stores; p is aligned to vectors. `order_stores` comes after them,
// before other threads read.
static inline void store_past_caches(float *p, vf v) {
#if VL == 16
  _mm512_stream_ps(p, (__m512)v);
#elif VL == 8
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}
static inline void order_stores(void) {
#if VL >= 8
  _mm_sfence();
#endif
}

// Reads the first n (at most VL) numbers; the others are `fill`.
static inline vf load_part(const float *p, int64_t n, float fill) {
#if VL == 16
  return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << n) - 1), p);
#else
  vf v;
  for (int i = 0; i < VL; i++) v[i] = i < n ? p[i] : fill;
  return v;
#endif
}

// Writes the first n (at most VL) numbers only.
static inline void store_part(float *p, vf v, int64_t n) {
#if VL == 16
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  for (int i = 0; i < n; i++) p[i] = v[i];
#endif
}

static inline vf splat(float x) { return x - (vf){0}; }
static inline vu splat_word(uint32_t x) { return x - (vu){0}; }

static inline vf vmax(vf a, vf b) {
#if VL == 16
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif VL == 8
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#endif
}

// a b + c, rounded once, wherever it is inlined: the compilers contract a * b + c in some places and not in others.
static inline vf vfma(vf a, vf b, vf c) {
#if VL == 16
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VL == 8
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
}

static inline vf vmin(vf a, vf b) { return -vmax(-a, -b); }

static inline vf vsqrt(vf a) {
#if VL == 16
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif VL == 8
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  return (vf)vsqrtq_f32((float32x4_t)a);
#endif
}

static inline float widen_half(uint16_t half) {
#if VL == 4
  __fp16 value;
  memcpy(&value, &half, 2);
  return (float)value;
#else
  return _cvtsh_ss(half);
#endif
}

#if VL == 8
static inline float fold(__m256 v, __m128 (*both)(__m128, __m128)) {
  __m128 x = both(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = both(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(both(x, _mm_movehdup_ps(x)));
}
static inline __m128 add4(__m128 a, __m128 b) { return _mm_add_ps(a, b); }
static inline __m128 max4(__m128 a, __m128 b) { return _mm_max_ps(a, b); }
#endif

static inline float sum_of(vf v) {
#if VL == 16
  return _mm512_reduce_add_ps((__m512)v);
#elif VL == 8
  return fold((__m256)v, add4);
#else
  return vaddvq_f32((float32x4_t)v);
#endif
}

static inline float max_of(vf v) {
#if VL == 16
  return _mm512_reduce_max_ps((__m512)v);
#elif VL == 8
  return fold((__m256)v, max4);
#else
  return vmaxvq_f32((float32x4_t)v);
#endif
}

// e^x, within 2 units in the last place; 0 below -87.3. NaN stays NaN: of a comparison with it the second operand is taken. Range
// reduction by ln 2 in two parts, then a minimax polynomial (Cephes' expf).
static inline vf vexp(vf x) {
#if VL == 16
  x = vmax(splat(-120.0f), x); // keeps -infinity from the subtraction below
  const __m512 rounded = _mm512_roundscale_ps((__m512)(x * 1.44269504f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const vf n = (vf)rounded;
#else
  vi tiny = x < splat(-87.3f);
  x = vmin(splat(88.3f), vmax(splat(-87.3f), x));
  const vf magic = splat(12582912.0f); // 1.5 * 2^23: adding it rounds to an integer
  vf n = x * 1.44269504f + magic;
  vi exponent = (vi)n << 23;
  n -= magic;
#endif
  vf r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#if VL == 16
  return (vf)_mm512_scalef_ps((__m512)p, rounded); // p 2^n, 0 or infinity past the ends
#else
  return (vf)(((vi)p + exponent) & ~tiny);
#endif
}

// A where `is` is all ones, b where it is zero.
static inline vf where(vi is, vf a, vf b) { return (vf)(((vi)a & is) | ((vi)b & ~is)); }

// A where x > 0, b elsewhere.
static inline vf where_positive(vf x, vf a, vf b) { return where(x > (vf){0}, a, b); }

static inline vf vabs(vf x) { return vmax(x, -x); }

// tanh x, within 3 units in the last place; NaN stays NaN. Near 0 a minimax polynomial (Cephes' tanhf), by e^2x elsewhere.
static inline vf vtanh(vf x) {
  const vf size = vmin(splat(10.0f), vabs(x)), square = size * size;
  vf p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const vf near = p * square * size + size, far = 1.0f - 2.0f / (vexp(size + size) + 1.0f);
  const vf result = where_positive(size - 0.625f, far, near);
  return where_positive(x, result, -result);
}

#if HAS_INTEGERS
static inline vi round_to_integers(vf v) {
#if VL == 16
  return (vi)_mm512_cvtps_epi32((__m512)v);
#else
  return (vi)_mm256_cvtps_epi32((__m256)v);
#endif
}

static inline vf widen_integers(vi v) {
#if VL == 16
  return (vf)_mm512_cvtepi32_ps((__m512i)v);
#else
  return (vf)_mm256_cvtepi32_ps((__m256i)v);
#endif
}

// Words of two integers: even[i] in the low half of word i, odd[i] in the high one.
static inline vu integer_words(vf even, vf odd) {
  return ((vu)round_to_integers(odd) << 16) | ((vu)round_to_integers(even) & 0xffff);
}

// 2 VL consecutive numbers as VL words of two integers.
static inline vu integers_of(vf first, vf second) {
#if VL == 16
  const __m512i turns = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0); // 4 numbers of each come in turn
  return (vu)_mm512_permutexvar_epi64(
      turns, _mm512_packs_epi32((__m512i)round_to_integers(first), (__m512i)round_to_integers(second)));
#else
  return (vu)_mm256_permute4x64_epi64(
      _mm256_packs_epi32((__m256i)round_to_integers(first), (__m256i)round_to_integers(second)), 0xd8);
#endif
}

// total[i] + a[i].low * b[i].low + a[i].high * b[i].high
static inline vi dot_integers(vi total, vu a, vu b) {
#if VL == 16
  return (vi)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
  return (vi)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#else
  return total + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
#endif

// Words of two bf16: bf16(even[i]) in the low half of word i, bf16(odd[i]) in the high one. Rounds to nearest even.
static inline vu pair_words(vf even, vf odd) {
#if VL == 16 && HAS_BF16_DOT
  // the 16 of `even`, then the 16 of `odd`; and then one of each in turn
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even);
  const __m512i turns = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return (vu)_mm512_permutexvar_epi16(turns, halves);
#else
  vu a = (vu)even, b = (vu)odd;
  a = (a + 0x7fff + ((a >> 16) & 1)) >> 16;
  b = (b + 0x7fff + ((b >> 16) & 1)) & 0xffff0000u;
  return a | b;
#endif
}

// 2 VL consecutive numbers as VL words of two bf16.
static inline vu pairs_of(const float *p) {
#if VL == 16 && HAS_BF16_DOT
  return (vu)_mm512_cvtne2ps_pbh((__m512)load(p + 16), (__m512)load(p));
#else
  vf even, odd;
  for (int i = 0; i < VL; i++) {
    even[i] = p[2 * i];
    odd[i] = p[2 * i + 1];
  }
  return pair_words(even, odd);
#endif
}

#if HAS_BF16_DOT
// total[i] + a[i].low * b[i].low + a[i].high * b[i].high
static inline vf dot_pairs(vf total, vu a, vu b) {
#if VL == 16
  return (vf)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
  return (vf)vbfdotq_f32((float32x4_t)total, (bfloat16x8_t)a, (bfloat16x8_t)b);
#endif
}
#endif

// A VL x VL block of words, rows to columns.
static inline void transpose_words(vu t[VL]) {
#if VL == 16
  __m512i a[16], b[16];
  for (int i = 0; i < 8; i++) {
    a[2 * i] = _mm512_unpacklo_epi32((__m512i)t[2 * i], (__m512i)t[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_epi32((__m512i)t[2 * i], (__m512i)t[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) { // b[4g + i] holds column i of each lane's rows 4g .. 4g + 3
    __m512i low = _mm512_shuffle_i32x4(b[i], b[4 + i], 0x88), high = _mm512_shuffle_i32x4(b[i], b[4 + i], 0xdd);
    __m512i low2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0x88), high2 = _mm512_shuffle_i32x4(b[8 + i], b[12 + i], 0xdd);
    t[i] = (vu)_mm512_shuffle_i32x4(low, low2, 0x88);
    t[8 + i] = (vu)_mm512_shuffle_i32x4(low, low2, 0xdd);
    t[4 + i] = (vu)_mm512_shuffle_i32x4(high, high2, 0x88);
    t[12 + i] = (vu)_mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#elif VL == 8
  __m256i a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_epi32((__m256i)t[2 * i], (__m256i)t[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32((__m256i)t[2 * i], (__m256i)t[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
    b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
    b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = (vu)_mm256_permute2x128_si256(b[i], b[4 + i], 0x20);
    t[4 + i] = (vu)_mm256_permute2x128_si256(b[i], b[4 + i], 0x31);
  }
#else
  uint32x4x2_t p = vtrnq_u32((uint32x4_t)t[0], (uint32x4_t)t[1]), q = vtrnq_u32((uint32x4_t)t[2], (uint32x4_t)t[3]);
  t[0] = (vu)vcombine_u32(vget_low_u32(p.val[0]), vget_low_u32(q.val[0]));
  t[1] = (vu)vcombine_u32(vget_low_u32(p.val[1]), vget_low_u32(q.val[1]));
  t[2] = (vu)vcombine_u32(vget_high_u32(p.val[0]), vget_high_u32(q.val[0]));
  t[3] = (vu)vcombine_u32(vget_high_u32(p.val[1]), vget_high_u32(q.val[1]));
#endif
}
