// AdamW with less memory.
#include "rows.h"

// Moments in 8 bits (after Dettmers et al. 2022): blocks of numbers with the largest size of each, and codes for their ratios to it. A
// code is a small float, `exponents` binades of eight steps and below them steps of zero's; what lies between two codes becomes one of them
// by chance, in proportion, so that what is lost by rounding is made up for over steps instead of always being the same.
#define MOMENT_BLOCK 256 // numbers, as src/tensor/optimizer.ts has it
#define STEPS 3             // bits of a code's fraction
#define LARGEST 1.875f      // the largest code's value, before its exponent
enum { FIRST_EXPONENTS = 16, SECOND_EXPONENTS = 32 };

// Mixes bits (the finalizer of Wellons' lowbias32).
static inline vu mixed(vu x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// The value of a code, from 0 to 1.
static inline vf decoded(vu code, int exponents) {
  const vf steps = __builtin_convertvector((vi)code, vf) * ldexpf(1, 2 - STEPS - exponents);
  const vf normal = (vf)((code << (23 - STEPS)) + splat_word((uint32_t)(128 - exponents) << 23));
  return where((vi)code < (1 << STEPS), steps, normal) * (1 / LARGEST);
}

// A code for a value from 0 to 1, one of the two next to it. chance: random bits.
static inline vu encoded(vf value, int exponents, vu chance) {
  const vf scaled = vmin(value, splat(1.0f)) * LARGEST;
  const vu below = chance & ((1u << (23 - STEPS)) - 1);
  const vu normal = (((vu)scaled + below) >> (23 - STEPS)) - splat_word((uint32_t)(128 - exponents) << STEPS);
  const vf steps = scaled * ldexpf(1, exponents + STEPS - 2) + __builtin_convertvector((vi)below, vf) * ldexpf(1, STEPS - 23);
  const vi small = scaled < splat(ldexpf(1, 2 - exponents));
  const vu code = (vu)(((vi)normal & ~small) | (__builtin_convertvector(steps, vi) & small));
  const vu last = splat_word((uint32_t)(exponents << STEPS) - 1);
  const vi beyond = (vi)code > (vi)last;
  return (vu)(((vi)last & beyond) | ((vi)code & ~beyond));
}

typedef uint8_t vb __attribute__((vector_size(VL)));

// VL bytes as words; zeros after the first n.
static inline vu bytes_at(const uint8_t *p, int n) {
  vb bytes = {0};
  memcpy(&bytes, p, n < VL ? n : VL);
  return __builtin_convertvector(bytes, vu);
}

static inline void put_bytes(uint8_t *p, vu words, int n) {
  const vb bytes = __builtin_convertvector(words, vb);
  memcpy(p, &bytes, n < VL ? n : VL);
}

// AdamW with moments of 8 bits, in place on the weight. src: weight, gradient, codes of m and v (a byte each), largest m and v of each
// block, settings [as above, number of the step], gradient scale [1]
OP(adamw8) {
  (void)data;
  float *w = dst->data, *most_m = dst->src[4]->data, *most_v = dst->src[5]->data;
  uint8_t *codes_m = dst->src[2]->data, *codes_v = dst->src[3]->data;
  const float *g = dst->src[1]->data, *s = dst->src[6]->data;
  const float scale = *(const float *)dst->src[7]->data;
  const float rate = s[0], beta1 = s[1], beta2 = s[2], epsilon = s[3], keep = 1 - rate * s[4];
  const int64_t n = count_of(dst);
  vu lane;
  for (int k = 0; k < VL; k++) lane[k] = k;
  int64_t from, to;
  share_of((n + MOMENT_BLOCK - 1) / MOMENT_BLOCK, ith, nth, &from, &to);
  for (int64_t block = from; block < to; block++) {
    const int64_t at = block * MOMENT_BLOCK;
    const int count = n - at < MOMENT_BLOCK ? (int)(n - at) : MOMENT_BLOCK;
    vf m[MOMENT_BLOCK / VL], v[MOMENT_BLOCK / VL], largest_m = {0}, largest_v = {0};
    for (int i = 0; i < count; i += VL) {
      const vu cm = bytes_at(codes_m + at + i, count - i), cv = bytes_at(codes_v + at + i, count - i);
      const vf size = decoded(cm & 127, FIRST_EXPONENTS) * most_m[block];
      const vf old_m = where((vi)(cm << 24) < 0, -size, size), old_v = decoded(cv, SECOND_EXPONENTS) * most_v[block];
      const vf gi = row_at(g + at, i, count, 0) * scale;
      const vf mi = old_m * beta1 + gi * (1 - beta1), vi_ = old_v * beta2 + gi * gi * (1 - beta2);
      put_row(w + at, i, count, row_at(w + at, i, count, 0) * keep - mi * (rate * s[5]) / (vsqrt(vi_ * s[6]) + epsilon));
      m[i / VL] = mi;
      v[i / VL] = vi_;
      largest_m = vmax(largest_m, vabs(mi));
      largest_v = vmax(largest_v, vi_);
    }
    most_m[block] = max_of(largest_m);
    most_v[block] = max_of(largest_v);
    const vf inverse_m = splat(most_m[block] > 0 ? 1 / most_m[block] : 0), inverse_v = splat(most_v[block] > 0 ? 1 / most_v[block] : 0);
    for (int i = 0; i < count; i += VL) {
      const vu number = splat_word((uint32_t)(at + i)) + lane;
      const vu chance = mixed(number * 0x9e3779b1u + splat_word((uint32_t)s[7] * 0x85ebca6bu));
      const vf mi = m[i / VL], vi_ = v[i / VL];
      const vu cm = encoded(vabs(mi) * inverse_m, FIRST_EXPONENTS, chance) | ((vu)(mi < (vf){0}) & 128);
      vu cv = encoded(vi_ * inverse_v, SECOND_EXPONENTS, mixed(chance + 1));
      cv |= (vu)((vi)(cv == 0) & (vi_ > (vf){0}) & 1); // never 0: a quotient by it would be too large
      put_bytes(codes_m + at + i, cm, count - i);
      put_bytes(codes_v + at + i, cv, count - i);
    }
  }
}
