// What the library computes: one layer in one direction over a whole sequence, forward and backward.
//
// T steps, B sequences, I inputs, H hidden units, P the size of h (H, or w_hr's rows), G gates and
// S slots of the cell (cells/cell.h). `rows` is the first dimension, or the first two, of x: a padded
// batch is [T, B, I]; with batch_sizes (int64 [T], on the CPU, never increasing) x is packed, [rows, I],
// and so is every per-step tensor; a lone [B, I] is one step.
//
//   cell         a name in cells/registry.h
//   h0 [B, P], c0 [B, H]                      initial state; c0 for cells with a second state
//   w_ih [G*H, I], w_hh [G*H, P], b_ih, b_hh [G*H], w_hr [P, H]
//   batch_sizes  see above
//   lengths      int64 [B] on x's device: sequence b ends after lengths[b] steps; its output is zero
//                beyond, its state that of its own end, and what x holds there, NaN too, makes no
//                difference. From 0 to T: checked on a CPU; on a GPU, where that would wait for it,
//                others count as the nearest. Never together with batch_sizes.
//   reset        bool, of x's leading dimensions: the state is zero before this step. In a reverse
//                direction "before" is in the order of computation.
//   reverse      the last step is computed first
//   keep         what forward keeps for backward: 0 nothing, 1 c of every step, 2 c and the slots
//
// forward returns y [.., P], h_n [B, P], c_n [B, H], c [.., H], slots [.., S*H], where what the cell
// does not have or was not asked for has no elements. backward takes gradients of the first four
// (any may be absent) and what forward kept; given no slots it recomputes them. It returns gradients in
// the order of their tensors, those not asked for by `needs` ([x, weights]) and those of absent tensors
// without elements. Neither op keeps or changes its inputs.
//
// prepack packs a layer's matrices for this process's kernels, as `weights` says: own (the dtype they
// have), bfloat16 or int8 (with a scale for each row). forward_prepacked is forward with them; it has no
// backward, and keep is at most 1.
//
// cuda_driver names the driver that would compute a layer of x's dtype on its device, and says why;
// cuda_drivers names all. A build without CUDA has no implementation of these two.
#include <torch/library.h>

TORCH_LIBRARY(fastrnn, m) {
  m.def(
      "forward(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, "
      "Tensor? b_hh, Tensor? w_hr, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, "
      "int keep) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c, Tensor slots)");
  m.def(
      "backward(str cell, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dc, Tensor x, Tensor h0, "
      "Tensor? c0, Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, "
      "Tensor? batch_sizes, Tensor? lengths, Tensor? reset, bool reverse, Tensor y, Tensor c, "
      "Tensor slots, bool[2] needs) -> (Tensor dx, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, "
      "Tensor db_ih, Tensor db_hh, Tensor dw_hr)");
  m.def("prepack(str cell, Tensor w_ih, Tensor w_hh, Tensor? w_hr, str weights) -> Tensor");
  m.def(
      "forward_prepacked(str cell, Tensor x, Tensor h0, Tensor? c0, Tensor panels, Tensor? b_ih, "
      "Tensor? b_hh, int hidden_size, str weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, "
      "bool reverse, int keep) -> (Tensor y, Tensor h_n, Tensor c_n, Tensor c)");
  m.def(
      "cuda_driver(Tensor x, str cell, int T, int B, int H, bool projects, bool backward) "
      "-> (str name, str reason)");
  m.def("cuda_drivers() -> str[]");
}
