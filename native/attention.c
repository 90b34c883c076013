// Causal attention with grouped queries, forwards and backwards (Vaswani et al. 2017, eq. 1). Scores exist for a block of
// queries at a time only; the backward pass computes them again instead of keeping them (Dao et al. 2022, section 3.1).
// All of q, k, v and their gradients are [batch, sequence, heads, headDim].
#include "gemm.h"

enum { ATTENTION_BF16 = 1, WINDOW_SHIFT = 1 };

#define SCORE_BYTES (256 << 10) // scores of a block of queries stay in the second-level cache
#define MAX_QUERIES (4 * NR > 64 ? 4 * NR : 64)

typedef struct {
  int64_t batch, length, heads, kv_heads, dim;
  int64_t window; // how many keys a query reads, itself included
  float scale;
  int pairs;
  int queries; // in a block
} Shape;

static Shape shape_of(const Tensor *q, const Tensor *k, const void *data) {
  const Settings s = {.pointer = (void *)data};
  Shape shape = {.batch = q->ne[3], .length = q->ne[2], .heads = q->ne[1], .kv_heads = k->ne[1], .dim = q->ne[0]};
  shape.window = s.flags >> WINDOW_SHIFT;
  if (shape.window == 0 || shape.window > shape.length) shape.window = shape.length;
  shape.scale = s.value;
  shape.pairs = HAS_BF16_DOT && (s.flags & ATTENTION_BF16);
  int64_t queries = SCORE_BYTES / (4 * shape.length) / NR * NR;
  shape.queries = queries < NR ? NR : queries > MAX_QUERIES ? MAX_QUERIES : (int)queries;
  return shape;
}

// Positions from `at` on of one head; rows are positions (or channels, when transposed).
static Operand head_of(const Tensor *x, int64_t batch, int64_t head, int64_t at, int transposed) {
  const char *data = (const char *)x->data + batch * x->nb[3] + at * x->nb[2] + head * x->nb[1];
  return transposed ? (Operand){data, x->type, x->nb[0], x->nb[2]} : (Operand){data, x->type, x->nb[2], x->nb[0]};
}

// The keys that the queries [q0, q1) read: from a panel's edge before the first, to after the last.
static void keys_of(const Shape *s, int64_t q0, int64_t q1, int64_t *from, int64_t *to) {
  const int64_t first = q0 - s->window + 1;
  *from = first > 0 ? first / MR * MR : 0;
  *to = q1;
}

// Scores into probabilities, row by row, zero where a query must not look. row r is query q0 + r over keys [from, from + n).
static void softmax_rows(const Shape *s, float *scores, int64_t ld, int64_t q0, int rows, int64_t from, int64_t n) {
  for (int r = 0; r < rows; r++) {
    float *row = scores + r * ld;
    const int64_t query = q0 + r, first = query - s->window + 1;
    const int64_t lo = first > from ? first - from : 0, hi = query + 1 - from;
    for (int64_t j = 0; j < lo; j++) row[j] = -INFINITY;
    for (int64_t j = hi; j < n; j++) row[j] = -INFINITY;
    vf most = splat(-INFINITY);
    int64_t j = 0;
    for (; j + VL <= n; j += VL) most = vmax(most, load(row + j));
    float top = max_of(most);
    for (; j < n; j++) top = row[j] > top ? row[j] : top;
    const vf scale = splat(s->scale), shift = splat(top * s->scale);
    vf total = (vf){0};
    float sum = 0;
    for (j = 0; j < n; j += VL) {
      float tail[VL];
      const int64_t left = n - j;
      vf x;
      if (left >= VL)
        x = load(row + j);
      else {
        for (int i = 0; i < VL; i++) tail[i] = i < left ? row[j + i] : -INFINITY;
        x = load(tail);
      }
      const vf e = vexp(x * scale - shift);
      total += e;
      if (left >= VL)
        store(row + j, e);
      else {
        store(tail, e);
        for (int i = 0; i < left; i++) row[j + i] = tail[i];
      }
    }
    sum = sum_of(total);
    const vf inverse = splat(1 / sum);
    for (j = 0; j + VL <= n; j += VL) store(row + j, load(row + j) * inverse);
    for (; j < n; j++) row[j] /= sum;
  }
}

// A packed key or value matrix: all positions of a head, as the vectorised operand.
static uint32_t *pack_positions(int slot, const Tensor *x, int64_t batch, int64_t head, const Shape *s) {
  const int words = words_for((int)s->dim, s->pairs);
  uint32_t *out = coppice_scratch(slot, panel_bytes((int)s->length, MR, words));
  const Operand rows = head_of(x, batch, head, 0, 0);
  pack_a(&rows, 0, (int)s->length, 0, (int)s->dim, s->pairs, out);
  return out;
}

static inline Operand matrix(const float *data, int64_t ld, int transposed) {
  return transposed ? (Operand){(const char *)data, TYPE_F32, 4, ld * 4} : (Operand){(const char *)data, TYPE_F32, ld * 4, 4};
}

// src: q, k, v -> [batch, sequence, heads, headDim]
void KERNEL(attention)(Tensor *dst, int ith, int nth, void *data) {
  const Tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
  const Shape s = shape_of(q, k, data);
  const int64_t group = s.heads / s.kv_heads, ld = round_up((int)s.length, VL), row = s.heads * s.dim;
  const int words = words_for((int)s.dim, s.pairs);
  float *scores = coppice_scratch(SCRATCH_3, 4 * s.queries * ld);
  uint32_t *pq = coppice_scratch(SCRATCH_4, panel_bytes(s.queries, NR, words));
  // more threads than key-value heads share a head's blocks of queries
  const int64_t units = s.batch * s.kv_heads, shares = units >= nth ? 1 : (nth + units - 1) / units;
  for (int64_t unit = ith; unit < units * shares; unit += nth) {
    const int64_t batch = unit / shares / s.kv_heads, kv = unit / shares % s.kv_heads, share = unit % shares;
    const uint32_t *pk = pack_positions(SCRATCH_1, k, batch, kv, &s);
    const Operand values = head_of(v, batch, kv, 0, 1);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
      for (int64_t block = share; block * s.queries < s.length; block += shares) {
        const int64_t q0 = block * s.queries, q1 = q0 + s.queries < s.length ? q0 + s.queries : s.length;
        const int rows = (int)(q1 - q0);
        int64_t from, to;
        keys_of(&s, q0, q1, &from, &to);
        const Operand queries = head_of(q, batch, h, q0, 0);
        pack_b(&queries, 0, rows, 0, (int)s.dim, s.pairs, pq);
        multiply_panels(s.pairs, words, pk + from * words, (int)(to - from), pq, rows, scores, ld, 0);
        softmax_rows(&s, scores, ld, q0, rows, from, to - from);
        Operand shifted = values;
        shifted.data += from * values.k_stride;
        const Operand probabilities = matrix(scores, ld, 0);
        float *out = (float *)dst->data + (batch * s.length + q0) * row + h * s.dim;
        multiply(&shifted, 0, s.dim, &probabilities, 0, rows, to - from, out, row, s.pairs, 0);
      }
  }
}

// src: gradient of the result, q, k, v -> the gradients of q, k and v, one after the other
void KERNEL(attention_back)(Tensor *dst, int ith, int nth, void *data) {
  const Tensor *dy = dst->src[0], *q = dst->src[1], *k = dst->src[2], *v = dst->src[3];
  const Shape s = shape_of(q, k, data);
  const int64_t group = s.heads / s.kv_heads, ld = round_up((int)s.length, VL);
  const int64_t row = s.heads * s.dim, kv_row = s.kv_heads * s.dim, positions = s.batch * s.length;
  const int words = words_for((int)s.dim, s.pairs);
  float *const dq = dst->data, *const dk = dq + positions * row, *const dv = dk + positions * kv_row;
  float *scores = coppice_scratch(SCRATCH_3, 4 * s.queries * ld);
  float *slopes = coppice_scratch(SCRATCH_5, 4 * s.queries * ld);
  uint32_t *pb = coppice_scratch(SCRATCH_4, panel_bytes(s.queries, NR, words));
  for (int64_t unit = ith; unit < s.batch * s.kv_heads; unit += nth) {
    const int64_t batch = unit / s.kv_heads, kv = unit % s.kv_heads;
    const uint32_t *pk = pack_positions(SCRATCH_1, k, batch, kv, &s);
    const uint32_t *pv = pack_positions(SCRATCH_2, v, batch, kv, &s);
    float *const dk_head = dk + batch * s.length * kv_row + kv * s.dim, *const dv_head = dv + (dk_head - dk);
    for (int64_t t = 0; t < s.length; t++) {
      memset(dk_head + t * kv_row, 0, 4 * s.dim);
      memset(dv_head + t * kv_row, 0, 4 * s.dim);
    }
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
      for (int64_t q0 = 0; q0 < s.length; q0 += s.queries) {
        const int64_t q1 = q0 + s.queries < s.length ? q0 + s.queries : s.length;
        const int rows = (int)(q1 - q0);
        int64_t from, to;
        keys_of(&s, q0, q1, &from, &to);
        const int n = (int)(to - from);
        const Operand queries = head_of(q, batch, h, q0, 0), queries_t = head_of(q, batch, h, q0, 1);
        // dy is [batch · sequence, heads · headDim]
        const float *dy_block = (const float *)dy->data + (batch * s.length + q0) * row + h * s.dim;
        const Operand dy_rows = matrix(dy_block, row, 0), dy_t = matrix(dy_block, row, 1);

        pack_b(&queries, 0, rows, 0, (int)s.dim, s.pairs, pb);
        multiply_panels(s.pairs, words, pk + from * words, n, pb, rows, scores, ld, 0);
        softmax_rows(&s, scores, ld, q0, rows, from, n);
        pack_b(&dy_rows, 0, rows, 0, (int)s.dim, s.pairs, pb);
        multiply_panels(s.pairs, words, pv + from * words, n, pb, rows, slopes, ld, 0);
        for (int r = 0; r < rows; r++) { // dS = P (dP - sum of P dP) scale
          float *p = scores + r * ld, *d = slopes + r * ld;
          vf total = (vf){0};
          int64_t j = 0;
          for (; j + VL <= n; j += VL) total += load(p + j) * load(d + j);
          float sum = sum_of(total);
          for (; j < n; j++) sum += p[j] * d[j];
          const vf mean = splat(sum), scale = splat(s.scale);
          for (j = 0; j + VL <= n; j += VL) store(d + j, load(p + j) * (load(d + j) - mean) * scale);
          for (; j < n; j++) d[j] = p[j] * (d[j] - sum) * s.scale;
        }
        const Operand p_t = matrix(scores, ld, 1), ds = matrix(slopes, ld, 0), ds_t = matrix(slopes, ld, 1);
        const Operand keys_t = head_of(k, batch, kv, from, 1);
        multiply(&keys_t, 0, s.dim, &ds, 0, rows, n, dq + (batch * s.length + q0) * row + h * s.dim, row, s.pairs, 0);
        multiply(&dy_t, 0, s.dim, &p_t, 0, n, rows, dv_head + from * kv_row, kv_row, s.pairs, 1);
        multiply(&queries_t, 0, s.dim, &ds_t, 0, n, rows, dk_head + from * kv_row, kv_row, s.pairs, 1);
      }
  }
}
