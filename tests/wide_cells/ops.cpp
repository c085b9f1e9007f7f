// torch.ops.fastrnn_wide: the CPU ops of csrc/torch over the cells of registry.h in this folder.
#include "torch/cpu_ops.h"
#include "torch/stable/library.h"

namespace {

using fastrnn::Library;

const bool registered [[maybe_unused]] = [] {
  Library ops = Library::definitions("fastrnn_wide");
  ops.define(
      "forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, "
      "int keep, int precision=0) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor slots)");
  ops.define(
      "backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, Tensor x, Tensor h0, "
      "Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, Tensor y, Tensor c, "
      "Tensor slots, bool[2] needs, int precision=0) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, "
      "Tensor dw_hh, Tensor db_ih, Tensor db_hh, Tensor dw_hr)");
  ops.define(
      "prepack(str cell, Tensor w_ih, Tensor w_hh, Tensor? w_hr, str weights, int precision=0) -> Tensor");
  ops.define(
      "forward_prepacked(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor panels, Tensor? b_ih, "
      "Tensor? b_hh, int hidden_size, str weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "bool reverse, int keep, int precision=0) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c)");
  Library cpu = Library::implementations("CPU", "fastrnn_wide");
  cpu.implement<fastrnn::forward>("forward");
  cpu.implement<fastrnn::backward>("backward");
  cpu.implement<fastrnn::prepack>("prepack");
  cpu.implement<fastrnn::forward_prepacked>("forward_prepacked");
  return true;
}();

}  // namespace
