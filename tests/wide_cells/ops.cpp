// torch.ops.fastrnn_wide: the CPU ops of csrc/torch over the cells of registry.h in this folder.
#include <torch/library.h>

#include "torch/cpu_ops.h"

TORCH_LIBRARY(fastrnn_wide, m) {
  m.def(
      "forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, "
      "int keep) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor slots)",
      fastrnn::forward);
  m.def(
      "backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, Tensor x, Tensor h0, "
      "Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, Tensor y, Tensor c, "
      "Tensor slots, bool[2] needs) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, "
      "Tensor db_ih, Tensor db_hh, Tensor dw_hr)",
      fastrnn::backward);
  m.def("prepack(str cell, Tensor w_ih, Tensor w_hh, Tensor? w_hr, str weights) -> Tensor",
        fastrnn::prepack);
  m.def(
      "forward_prepacked(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor panels, Tensor? b_ih, "
      "Tensor? b_hh, int hidden_size, str weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "bool reverse, int keep) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c)",
      fastrnn::forward_prepacked);
}
