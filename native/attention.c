// Causal attention with grouped queries, forwards and backwards (Vaswani et al. 2017, eq. 1). Scores exist for a block of
// queries at a time only; the backward pass computes them again instead of keeping them (Dao et al. 2022, section 3.1).
// All of q, k, v and their gradients are [batch, sequence, heads, headDim].
//
// Forwards, a sequence may be a forest of token sequences that share their beginnings, in depth-first order: ends[j] is the place
// after the last descendant of token j, so that query i reads key j where j <= i < ends[j]. A window counts positions, which a
// forest brings along.
#include "gemm.h"
#include "rows.h"

// Flags. The last three say which sources follow q, k and v, in this order: the ends and the positions of a forest; the limit of
// scores (Gemma 2 report, section 2); a logit per head that is only in the softmax's denominator (gpt-oss).
enum { ATTENTION_BF16 = 1, ATTENTION_FOREST = 2, ATTENTION_SOFT_CAP = 4, ATTENTION_SINKS = 8, WINDOW_SHIFT = 4 };

#define SCORE_BYTES (256 << 10) // scores of a block of queries stay in the second-level cache
#define MAX_QUERIES 64

typedef struct {
  int64_t batch, length, heads, kv_heads, dim;
  int64_t window; // how many keys a query reads, including its own
  float scale;
  int pairs;
  int position_pairs; // in sums over positions. Not of integers: beside a key that takes nearly all, the others would be rounded away
  int panel;   // keys in a panel
  int queries; // in a block
  const int32_t *ends, *positions; // of a forest; NULL for one sequence
  float cap;                       // of the scaled scores; 0 for none
  const float *sinks;              // one per head; NULL for none
} Shape;

// A range of keys. Ranges begin at panels' edges; all but the last end there.
typedef struct {
  int64_t from, to;
} Run;

// `more` are the sources after q, k and v.
static Shape shape_of(const Tensor *q, const Tensor *k, Tensor *const *more, const void *data) {
  const Settings s = {.pointer = (void *)data};
  Shape shape = {.batch = q->ne[3], .length = q->ne[2], .heads = q->ne[1], .kv_heads = k->ne[1], .dim = q->ne[0]};
  shape.window = s.flags >> WINDOW_SHIFT;
  if (shape.window == 0 || shape.window > shape.length) shape.window = shape.length;
  shape.scale = s.value;
  shape.pairs = HAS_PAIRS && (s.flags & ATTENTION_BF16);
  shape.position_pairs = shape.pairs && !HAS_INTEGERS;
  shape.panel = width_a(shape.pairs);
  const int unit = width_b(shape.pairs);
  const int64_t queries = SCORE_BYTES / (4 * shape.length) / unit * unit;
  shape.queries = queries < unit ? unit : queries > MAX_QUERIES ? MAX_QUERIES : (int)queries;
  if (s.flags & ATTENTION_FOREST) {
    shape.ends = (*more++)->data;
    shape.positions = (*more++)->data;
  }
  if (s.flags & ATTENTION_SOFT_CAP) shape.cap = *(const float *)(*more++)->data;
  if (s.flags & ATTENTION_SINKS) shape.sinks = (*more++)->data;
  return shape;
}

// Positions from `at` on of one head; rows are positions (or channels, when transposed).
static Operand head_of(const Tensor *x, int64_t batch, int64_t head, int64_t at, int transposed) {
  const char *data = (const char *)x->data + batch * x->nb[3] + at * x->nb[2] + head * x->nb[1];
  return transposed ? (Operand){data, x->type, x->nb[0], x->nb[2]} : (Operand){data, x->type, x->nb[2], x->nb[0]};
}

// The keys of one sequence that the queries [q0, q1) read, from the edge of the first key's panel.
static Run keys_of(const Shape *s, int64_t q0, int64_t q1) {
  const int64_t first = q0 - s->window + 1;
  return (Run){first > 0 ? first / s->panel * s->panel : 0, q1};
}

// The same as several runs, without panels that no query of the block reads. @returns the number of runs
static int runs_of(const Shape *s, int64_t q0, int64_t q1, Run *runs) {
  if (s->ends == NULL) {
    runs[0] = keys_of(s, q0, q1);
    return 1;
  }
  int64_t lowest = s->positions[q0];
  for (int64_t i = q0 + 1; i < q1; i++) lowest = s->positions[i] < lowest ? s->positions[i] : lowest;
  int count = 0;
  for (int64_t panel = 0; panel < q1; panel += s->panel) {
    const int64_t end = panel + s->panel < q1 ? panel + s->panel : q1;
    int64_t last = 0; // the last place from which a key of the panel is read
    for (int64_t j = panel; j < end; j++)
      if (s->positions[j] > lowest - s->window && s->ends[j] > last) last = s->ends[j];
    if (last <= q0) continue;
    if (count > 0 && runs[count - 1].to == panel)
      runs[count - 1].to = end;
    else
      runs[count++] = (Run){panel, end};
  }
  return count;
}

// Sets the scores of a run's keys that a query must not read to minus infinity. @returns how many keys from the first on to look at
static int64_t hide(const Shape *s, float *row, int64_t query, Run run) {
  const int64_t n = run.to - run.from;
  if (s->ends != NULL) {
    const int32_t *ends = s->ends + run.from, *positions = s->positions + run.from;
    const int32_t place = (int32_t)query, before = s->positions[query] - (int32_t)s->window, last = place - (int32_t)run.from;
    for (int32_t j = 0; j < n; j++)
      row[j] = ((j <= last) & (ends[j] > place) & (positions[j] > before)) ? row[j] : -INFINITY;
    return n;
  }
  const int64_t first = query - s->window + 1, lo = first > run.from ? first - run.from : 0, hi = query + 1 - run.from;
  for (int64_t j = 0; j < lo; j++) row[j] = -INFINITY;
  for (int64_t j = hi; j < n; j++) row[j] = -INFINITY;
  return hi;
}

// Turns rows of n scores into smoothly limited ones, cap tanh(score scale / cap). Where `slopes` is not NULL it receives the
// slopes, 1 - tanh^2.
static void limit(const Shape *s, float *scores, int64_t ld, int rows, int64_t n, float *slopes) {
  const float ratio = s->scale / s->cap;
  for (int r = 0; r < rows; r++) {
    float *row = scores + r * ld;
    for (int64_t j = 0; j < n; j += VL) {
      const vf t = vtanh(row_at(row, j, n, 0) * ratio);
      put_row(row, j, n, t * s->cap);
      if (slopes != NULL) put_row(slopes + r * ld, j, n, 1.0f - t * t);
    }
  }
}

// Turns scores into the numerators of probabilities, row by row, zero for keys that a query must not read. Row r is query q0 + r
// of a head over the keys of all runs. sums[r] receives the denominator, and sunk[r] the sink's numerator, 0 without sinks.
static void exponentials(const Shape *s, float *scores, int64_t ld, int64_t head, int64_t q0, int rows, const Run *runs, int count,
                         float *sums, float *sunk) {
  const float factor = s->cap > 0 ? 1 : s->scale; // limited scores are scaled already
  const vf scale = splat(factor);
  for (int r = 0; r < rows; r++) {
    float *row = scores + r * ld;
    int64_t n = 0, hi = 0;
    for (int i = 0; i < count; i++) {
      hi = n + hide(s, row + n, q0 + r, runs[i]);
      n += runs[i].to - runs[i].from;
    }
    vf most = splat(-INFINITY);
    for (int64_t j = 0; j < hi; j += VL) most = vmax(most, row_at(row, j, n, -INFINITY));
    float highest = max_of(most) * factor;
    if (s->sinks != NULL && s->sinks[head] > highest) highest = s->sinks[head];
    const vf shift = splat(highest);
    vf total = (vf){0};
    for (int64_t j = 0; j < n; j += VL) {
      const vf e = vexp(row_at(row, j, n, -INFINITY) * scale - shift);
      total += e;
      put_row(row, j, n, e);
    }
    sunk[r] = s->sinks == NULL ? 0 : vexp(splat(s->sinks[head] - highest))[0];
    sums[r] = sum_of(total) + sunk[r];
  }
}

// Keys or values of a head as the vectorized operand: by position (panels of positions, summed over channels) or, transposed,
// by channel (panels of channels, summed over positions).
static uint32_t *pack_head(int slot, const Tensor *x, int64_t batch, int64_t head, const Shape *s, int transposed) {
  const int rows = (int)(transposed ? s->dim : s->length), terms = (int)(transposed ? s->length : s->dim);
  const int pairs = transposed ? s->position_pairs : s->pairs;
  uint32_t *out = coppice_scratch(slot, panel_bytes(rows, s->panel, words_for(terms, pairs)));
  const Operand operand = head_of(x, batch, head, 0, transposed);
  pack_a(&operand, 0, rows, 0, terms, pairs, out);
  return out;
}

// The word of a panel of channels at which position `from`, which is even, begins.
static inline int word_at(const Shape *s, int64_t from) { return (int)(s->position_pairs ? from / 2 : from); }

static inline Operand matrix(const float *data, int64_t ld, int transposed) {
  return transposed ? (Operand){(const char *)data, TYPE_F32, 4, ld * 4} : (Operand){(const char *)data, TYPE_F32, ld * 4, 4};
}

// Rows of probabilities (or their gradients) times keys or values packed by channel, over the keys [from, from + n).
static void multiply_positions(const Shape *s, const uint32_t *packed, int64_t from, int n, const float *rows_data, int64_t ld,
                               int rows, float *out, int64_t row, int add) {
  const Operand operand = matrix(rows_data, ld, 0);
  const int pairs = s->position_pairs, words = words_for(n, pairs), all_words = words_for((int)s->length, pairs);
  uint32_t *pb = coppice_scratch(SCRATCH_B, panel_bytes(s->queries, width_b(pairs), all_words));
  pack_b(&operand, 0, rows, 0, n, pairs, pb);
  multiply_panels(pairs, words, packed, all_words, word_at(s, from), (int)s->dim, pb, rows,
                  out, row, add, WHOLE, 0);
}

// src: q, k, v, and the sources that the flags name -> [batch, sequence, heads, headDim]
OP(attention) {
  const Tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
  const Shape s = shape_of(q, k, dst->src + 3, data);
  const int64_t group = s.heads / s.kv_heads, ld = round_up((int)s.length, VL), row = s.heads * s.dim;
  const int words = words_for((int)s.dim, s.pairs);
  float *scores = coppice_scratch(SCRATCH_3, 4 * s.queries * ld);
  uint32_t *pq = coppice_scratch(SCRATCH_4, panel_bytes(s.queries, width_b(s.pairs), words));
  Run *runs = coppice_scratch(SCRATCH_5, (s.length / s.panel + 1) * sizeof(Run));
  float sums[MAX_QUERIES], sunk[MAX_QUERIES];
  // more threads than key-value heads share a head's blocks of queries
  const int64_t units = s.batch * s.kv_heads, shares = units >= nth ? 1 : (nth + units - 1) / units;
  for (int64_t unit = ith; unit < units * shares; unit += nth) {
    const int64_t batch = unit / shares / s.kv_heads, kv = unit / shares % s.kv_heads, share = unit % shares;
    const uint32_t *pk = pack_head(SCRATCH_1, k, batch, kv, &s, 0), *pv = pack_head(SCRATCH_2, v, batch, kv, &s, 1);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
      for (int64_t block = share; block * s.queries < s.length; block += shares) {
        const int64_t q0 = block * s.queries, q1 = q0 + s.queries < s.length ? q0 + s.queries : s.length;
        const int rows = (int)(q1 - q0);
        const int count = runs_of(&s, q0, q1, runs);
        const Operand queries = head_of(q, batch, h, q0, 0);
        pack_b(&queries, 0, rows, 0, (int)s.dim, s.pairs, pq);
        int64_t at = 0;
        for (int i = 0; i < count; at += runs[i].to - runs[i].from, i++)
          multiply_panels(s.pairs, words, pk + runs[i].from * words, words, 0, (int)(runs[i].to - runs[i].from), pq, rows,
                          scores + at, ld, 0, WHOLE, 0);
        if (s.cap > 0) limit(&s, scores, ld, rows, at, NULL);
        exponentials(&s, scores, ld, h, q0, rows, runs, count, sums, sunk);
        float *out = (float *)dst->data + (batch * s.length + q0) * row + h * s.dim;
        at = 0;
        for (int i = 0; i < count; at += runs[i].to - runs[i].from, i++)
          multiply_positions(&s, pv, runs[i].from, (int)(runs[i].to - runs[i].from), scores + at, ld, rows, out, row, i > 0);
        for (int r = 0; r < rows; r++) {
          const float inverse = 1 / sums[r];
          for (int64_t i = 0; i < s.dim; i += VL) put_row(out + r * row, i, s.dim, row_at(out + r * row, i, s.dim, 0) * inverse);
        }
      }
  }
}

// Turns the gradient of probabilities into that of scores, for one row of n: with p = e / sum, p (dp - sum of p dp) scale, times
// the slopes of limited scores unless NULL. e becomes p. @returns the sum of p dp
static float score_gradient(const Shape *s, float *e, float *d, const float *slopes, int64_t n, float inverse) {
  vf total = (vf){0};
  for (int64_t j = 0; j < n; j += VL) {
    const vf p = row_at(e, j, n, 0) * inverse;
    put_row(e, j, n, p);
    total += p * row_at(d, j, n, 0);
  }
  const float sum = sum_of(total);
  const vf mean = splat(sum), scale = splat(s->scale);
  for (int64_t j = 0; j < n; j += VL) {
    const vf gradient = row_at(e, j, n, 0) * (row_at(d, j, n, 0) - mean) * scale;
    put_row(d, j, n, slopes == NULL ? gradient : gradient * row_at(slopes, j, n, 0));
  }
  return sum;
}

// src: gradient of the result, q, k, v, and the sources that the flags name, without a forest -> the gradients of q, k and v,
// concatenated, and with sinks then theirs for each sequence, [batch, heads]
OP(attention_back) {
  const Tensor *dy = dst->src[0], *q = dst->src[1], *k = dst->src[2], *v = dst->src[3];
  const Shape s = shape_of(q, k, dst->src + 4, data);
  const int64_t group = s.heads / s.kv_heads, ld = round_up((int)s.length, VL);
  const int64_t row = s.heads * s.dim, kv_row = s.kv_heads * s.dim, positions = s.batch * s.length;
  const int words = words_for((int)s.dim, s.pairs);
  float *const dq = dst->data, *const dk = dq + positions * row, *const dv = dk + positions * kv_row;
  float *const dsinks = dv + positions * kv_row;
  float *scores = coppice_scratch(SCRATCH_3, 4 * s.queries * ld);
  float *slopes = coppice_scratch(SCRATCH_5, 4 * s.queries * ld);
  float *bends = s.cap > 0 ? coppice_scratch(SCRATCH_7, 4 * s.queries * ld) : NULL;
  uint32_t *pb = coppice_scratch(SCRATCH_4, panel_bytes(s.queries, width_b(s.pairs), words));
  float sums[MAX_QUERIES], sunk[MAX_QUERIES];
  for (int64_t unit = ith; unit < s.batch * s.kv_heads; unit += nth) {
    const int64_t batch = unit / s.kv_heads, kv = unit % s.kv_heads;
    const uint32_t *pk = pack_head(SCRATCH_1, k, batch, kv, &s, 0), *pv = pack_head(SCRATCH_2, v, batch, kv, &s, 0);
    const uint32_t *pk_t = pack_head(SCRATCH_6, k, batch, kv, &s, 1);
    float *const dk_head = dk + batch * s.length * kv_row + kv * s.dim, *const dv_head = dv + (dk_head - dk);
    for (int64_t t = 0; t < s.length; t++) {
      memset(dk_head + t * kv_row, 0, 4 * s.dim);
      memset(dv_head + t * kv_row, 0, 4 * s.dim);
    }
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
      double read_sink = 0;
      for (int64_t q0 = 0; q0 < s.length; q0 += s.queries) {
        const int64_t q1 = q0 + s.queries < s.length ? q0 + s.queries : s.length;
        const int rows = (int)(q1 - q0);
        const Run run = keys_of(&s, q0, q1);
        const int64_t from = run.from;
        const int n = (int)(run.to - from);
        const Operand queries = head_of(q, batch, h, q0, 0), queries_t = head_of(q, batch, h, q0, 1);
        const int64_t at = (batch * s.length + q0) * row + h * s.dim;
        const float *dy_block = (const float *)dy->data + at;
        const Operand dy_rows = matrix(dy_block, row, 0), dy_t = matrix(dy_block, row, 1);

        pack_b(&queries, 0, rows, 0, (int)s.dim, s.pairs, pb);
        multiply_panels(s.pairs, words, pk + from * words, words, 0, n, pb, rows, scores, ld, 0, WHOLE, 0);
        if (s.cap > 0) limit(&s, scores, ld, rows, n, bends);
        exponentials(&s, scores, ld, h, q0, rows, &run, 1, sums, sunk);
        pack_b(&dy_rows, 0, rows, 0, (int)s.dim, s.pairs, pb);
        multiply_panels(s.pairs, words, pv + from * words, words, 0, n, pb, rows, slopes, ld, 0, WHOLE, 0);
        for (int r = 0; r < rows; r++) {
          const float inverse = 1 / sums[r];
          const float *bent = bends == NULL ? NULL : bends + r * ld;
          const float mean = score_gradient(&s, scores + r * ld, slopes + r * ld, bent, n, inverse);
          read_sink += sunk[r] * inverse * mean;
        }
        multiply_positions(&s, pk_t, from, n, slopes, ld, rows, dq + at, row, 0);
        const Operand p_t = matrix(scores, ld, 1), ds_t = matrix(slopes, ld, 1);
        multiply(&dy_t, 0, s.dim, &p_t, 0, n, rows, dv_head + from * kv_row, kv_row, s.pairs, 1, 0, 0);
        multiply(&queries_t, 0, s.dim, &ds_t, 0, n, rows, dk_head + from * kv_row, kv_row, s.pairs, 1, 0, 0);
      }
      if (s.sinks != NULL) dsinks[batch * s.heads + h] = (float)-read_sink;
    }
  }
}
