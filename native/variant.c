// All kernels for one instruction set. The build compiles this file once per variant, with the flags of that set.
#define JOIN(variant, name) coppice_##variant##_##name
#define EXPAND(variant, name) JOIN(variant, name)
#define KERNEL(name) EXPAND(VARIANT, name)

// Begins the definition of a kernel that ggml calls: thread ith of nth computes its share of dst. Not inlined, so that no arithmetic
// is moved out of its control.
#define OP(name)                                                                                    \
  static __attribute__((noinline)) void name##_op(Tensor *dst, int ith, int nth, void *data);       \
  void KERNEL(name)(Tensor *dst, int ith, int nth, void *data) {                                    \
    const FloatControl control = flush_subnormals();                                                \
    name##_op(dst, ith, nth, data);                                                                 \
    set_float_control(control);                                                                     \
  }                                                                                                 \
  static void name##_op(Tensor *dst, int ith, int nth, void *data)

#include "matmul.c"
#include "activation.c"
#include "attention.c"
#include "elementwise.c"
#include "loss.c"
#include "moments.c"
#include "norm.c"
#include "rotary.c"
#include "statistics.c"
#include "workload.c"
