// All kernels for one instruction set. The build compiles this file once per variant, with the flags of that set.
#define JOIN(variant, name) coppice_##variant##_##name
#define EXPAND(variant, name) JOIN(variant, name)
#define KERNEL(name) EXPAND(VARIANT, name)

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
