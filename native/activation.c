// Activations, alone and as gates (Shazeer 2020, section 2). An op's flags are the number of its activation.
#include "rows.h"

enum { SILU, GELU_TANH, GELU }; // x sigmoid(x); x normal_cdf(x) by tanh; the same by the error function

static inline vf sigmoid(vf x) { return 1.0f / (1.0f + vexp(-x)); }

// The cumulative normal distribution at x, with an absolute error of 2e-7 and, below 0, a relative error of 4e-6. By the
// complementary error function of Press et al. 1992, section 6.2 (erfcc).
static inline vf normal_cdf(vf x) {
  const vf z = vabs(x) * 0.707106781f, t = 1.0f / (1.0f + 0.5f * z);
  vf p = t * 0.17087277f - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  const vf tail = 0.5f * t * vexp(p - 0.5f * x * x);
  return where_positive(x, 1.0f - tail, tail);
}

// The factor of x in the activation, and the activation's slope.
static inline __attribute__((always_inline)) vf activation(const int kind, vf x, vf *slope) {
  if (kind == SILU) {
    const vf s = sigmoid(x);
    *slope = s * (1.0f + x * (1.0f - s));
    return s;
  }
  if (kind == GELU_TANH) { // (1 + tanh u) / 2 = sigmoid(2u) with u = sqrt(2 / pi) (x + 0.044715 x^3)
    const vf square = x * x, s = sigmoid(x * (square * 0.0713548162726f + 1.59576912161f));
    *slope = s + x * s * (1.0f - s) * (square * 0.214064448818f + 1.59576912161f);
    return s;
  }
  const vf s = normal_cdf(x);
  *slope = s + x * 0.398942280401f * vexp(-0.5f * x * x);
  return s;
}

static inline __attribute__((always_inline)) void gate_span(const int kind, const float *gate, const float *up, float *out,
                                                            int64_t i, int64_t to) {
  for (; i < to; i += VL) {
    const vf x = row_at(gate, i, to, 0);
    vf slope;
    put_row(out, i, to, x * activation(kind, x, &slope) * (up == NULL ? splat(1) : row_at(up, i, to, 0)));
  }
}

static inline __attribute__((always_inline)) void gate_span_back(const int kind, const float *dy, const float *gate,
                                                                 const float *up, float *dgate, float *dup, int64_t i,
                                                                 int64_t to) {
  for (; i < to; i += VL) {
    const vf x = row_at(gate, i, to, 0), upstream = row_at(dy, i, to, 0);
    vf slope;
    const vf factor = activation(kind, x, &slope);
    if (up != NULL) put_row(dup, i, to, upstream * x * factor);
    put_row(dgate, i, to, upstream * slope * (up == NULL ? splat(1) : row_at(up, i, to, 0)));
  }
}

static void activate(Tensor *dst, int ith, int nth, const void *data, const Tensor *gate, const Tensor *up) {
  const float *x = gate->data, *y = up == NULL ? NULL : up->data;
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  switch (((Settings){.pointer = (void *)data}).flags) {
  case SILU: gate_span(SILU, x, y, dst->data, i, to); break;
  case GELU_TANH: gate_span(GELU_TANH, x, y, dst->data, i, to); break;
  default: gate_span(GELU, x, y, dst->data, i, to);
  }
}

static void activate_back(Tensor *dst, int ith, int nth, const void *data, const Tensor *up) {
  const float *dy = dst->src[0]->data, *x = dst->src[1]->data, *y = up == NULL ? NULL : up->data;
  const int64_t n = count_of(dst->src[0]);
  float *dx = dst->data, *dup = dx + n;
  int64_t i, to;
  span_of(n, ith, nth, &i, &to);
  switch (((Settings){.pointer = (void *)data}).flags) {
  case SILU: gate_span_back(SILU, dy, x, y, dx, dup, i, to); break;
  case GELU_TANH: gate_span_back(GELU_TANH, dy, x, y, dx, dup, i, to); break;
  default: gate_span_back(GELU, dy, x, y, dx, dup, i, to);
  }
}

// src: x -> gelu(x)
OP(gelu) { activate(dst, ith, nth, data, dst->src[0], NULL); }

// src: gradient of the result, x -> the gradient of x
OP(gelu_back) { activate_back(dst, ith, nth, data, NULL); }

// src: gate, up -> activation(gate) up
OP(gated) { activate(dst, ith, nth, data, dst->src[0], dst->src[1]); }

// src: gradient of the result, gate, up -> the gradients of gate and up, concatenated
OP(gated_back) { activate_back(dst, ith, nth, data, dst->src[2]); }

// src: x -> cap tanh(x / cap)
OP(soft_cap) {
  const float cap = ((Settings){.pointer = data}).value, *x = dst->src[0]->data;
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  for (; i < to; i += VL) put_row(dst->data, i, to, vtanh(row_at(x, i, to, 0) * (1 / cap)) * cap);
}

// src: gradient of the result, the result -> the gradient of x
OP(soft_cap_back) {
  const float cap = ((Settings){.pointer = data}).value, *dy = dst->src[0]->data, *y = dst->src[1]->data;
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  for (; i < to; i += VL) {
    const vf t = row_at(y, i, to, 0) * (1 / cap);
    put_row(dst->data, i, to, row_at(dy, i, to, 0) * (1.0f - t * t));
  }
}

// The number of partial sums of the gradients of xIELU's parameters, independent of the number of threads.
enum { XIELU_PARTS = 64 };

// xIELU (Huang & Schlag 2024) without its linear term: the factors of `rising` and `falling`, and their slopes.
static inline void xielu_curves(vf x, float epsilon, vf *rise, vf *fall, vf *rise_slope, vf *fall_slope) {
  const vf none = (vf){0}, limited = vmin(splat(epsilon), x), power = vexp(limited);
  const vf less_one = vtanh(limited * 0.5f) * (power + 1.0f); // e^x - 1, accurate near 0
  *rise = where_positive(x, x * x, none);
  *fall = where_positive(x, none, less_one - x);
  *rise_slope = where_positive(x, x + x, none);
  *fall_slope = where_positive(x, none, where_positive(epsilon - x, less_one, splat(-1)));
}

// src: x, rising [1], falling [1], beta and epsilon -> rising x^2 + beta x where x > 0,
// falling (e^min(x, epsilon) - 1 - x) + beta x elsewhere
OP(xielu) {
  (void)data;
  const float *x = dst->src[0]->data, *settings = dst->src[3]->data;
  const float rising = *(const float *)dst->src[1]->data, falling = *(const float *)dst->src[2]->data;
  int64_t i, to;
  span_of(count_of(dst), ith, nth, &i, &to);
  for (; i < to; i += VL) {
    const vf v = row_at(x, i, to, 0);
    vf rise, fall, rise_slope, fall_slope;
    xielu_curves(v, settings[1], &rise, &fall, &rise_slope, &fall_slope);
    put_row(dst->data, i, to, rising * rise + falling * fall + settings[0] * v);
  }
}

// src: gradient of the result, and the sources of xielu -> the gradient of x, then partial sums of the gradients of rising and of
// falling
OP(xielu_back) {
  (void)data;
  const float *dy = dst->src[0]->data, *x = dst->src[1]->data, *settings = dst->src[4]->data;
  const float rising = *(const float *)dst->src[2]->data, falling = *(const float *)dst->src[3]->data;
  const int64_t n = count_of(dst->src[0]);
  float *dx = dst->data, *sums = dx + n;
  for (int part = ith; part < XIELU_PARTS; part += nth) {
    int64_t i, to;
    span_of(n, part, XIELU_PARTS, &i, &to);
    double risen = 0, fallen = 0;
    while (i < to) { // in f32 over a bounded span, in f64 beyond
      const int64_t end = i + 16384 < to ? i + 16384 : to;
      vf risen_here = (vf){0}, fallen_here = (vf){0};
      for (; i < end; i += VL) {
        const vf v = row_at(x, i, end, 0), slope = row_at(dy, i, end, 0);
        vf rise, fall, rise_slope, fall_slope;
        xielu_curves(v, settings[1], &rise, &fall, &rise_slope, &fall_slope);
        risen_here += slope * rise;
        fallen_here += slope * fall;
        put_row(dx, i, end, slope * (rising * rise_slope + falling * fall_slope + settings[0]));
      }
      risen += sum_of(risen_here);
      fallen += sum_of(fallen_here);
    }
    sums[part] = (float)risen;
    sums[XIELU_PARTS + part] = (float)fallen;
  }
}
