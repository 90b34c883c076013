// What variants are timed on: the products and the attention of one layer's training step, on one thread. Included after the kernels
// that it calls.
#include "tensor.h"

enum { ROWS = 256, HIDDEN = 384, FFN = 768, HEADS = 6, HEAD_DIM = 64 };

static Tensor matrix_of(int64_t columns, int64_t rows, float *data) {
  return (Tensor){.type = TYPE_F32,
                  .ne = {columns, rows, 1, 1},
                  .nb = {4, 4 * columns, 4 * columns * rows, 4 * columns * rows},
                  .data = data};
}

static Tensor heads_of(int64_t positions, float *data) {
  return (Tensor){.type = TYPE_F32,
                  .ne = {HEAD_DIM, HEADS, positions, 1},
                  .nb = {4, 4 * HEAD_DIM, 4 * HEAD_DIM * HEADS, 4 * HEAD_DIM * HEADS * positions},
                  .data = data};
}

static void product(Tensor *dst, Tensor *a, Tensor *b, uint32_t flags) {
  dst->src[0] = a;
  dst->src[1] = b;
  KERNEL(matmul)(dst, 0, 1, ((Settings){.flags = flags | BF16}).pointer);
}

// numbers: (ROWS + HIDDEN) * FFN of them, to multiply; results: room for HIDDEN * FFN.
void KERNEL(workload)(float *numbers, float *results) {
  Tensor x = matrix_of(HIDDEN, ROWS, numbers), weight = matrix_of(HIDDEN, FFN, numbers + ROWS * FFN);
  Tensor y = matrix_of(FFN, ROWS, results), dx = matrix_of(HIDDEN, ROWS, results), dweight = matrix_of(HIDDEN, FFN, results);
  Tensor dy = matrix_of(FFN, ROWS, numbers);
  product(&y, &weight, &x, 0);
  product(&dx, &weight, &dy, A_TRANSPOSED);
  product(&dweight, &x, &dy, A_TRANSPOSED | B_TRANSPOSED);
  Tensor q = heads_of(ROWS, numbers), k = heads_of(ROWS, numbers + ROWS * FFN), mixed = heads_of(ROWS, results);
  Tensor gradient = heads_of(ROWS, numbers), gradients = matrix_of(3 * ROWS * HIDDEN, 1, results);
  void *const settings = ((Settings){.flags = ATTENTION_BF16, .value = 0.125f}).pointer;
  mixed.src[0] = &q;
  mixed.src[1] = mixed.src[2] = &k;
  KERNEL(attention)(&mixed, 0, 1, settings);
  gradients.src[0] = &gradient;
  gradients.src[1] = &q;
  gradients.src[2] = gradients.src[3] = &k;
  KERNEL(attention_back)(&gradients, 0, 1, settings);
}
