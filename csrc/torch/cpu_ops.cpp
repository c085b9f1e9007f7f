// Registers the ops on the CPU.
#include "torch/cpu_ops.h"

#include <torch/library.h>

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("forward", fastrnn::forward);
  m.impl("backward", fastrnn::backward);
  m.impl("prepack", fastrnn::prepack);
  m.impl("forward_prepacked", fastrnn::forward_prepacked);
}
