// The ops' tensors, checked: what is the same for every backend.
//
// An argument that does not fit raises ValueError, so that a caller can tell it from a failure of the
// kernels.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "cells/cell_info.h"

namespace fastrnn {

using OptionalTensor = std::optional<at::Tensor>;

// What an op keeps from forward for backward.
enum Keep : int64_t { keep_nothing = 0, keep_c = 1, keep_slots = 2 };

// Throws ValueError if there is no such cell.
CellId find_cell(std::string_view name);

// One layer in one direction, with its input and initial state; contiguous where drivers need it.
struct LayerTensors {
  CellId id;
  const CellInfo* cell;
  int64_t T, B, rows, I, H, P;
  std::vector<int64_t> leading;  // x's dimensions before the last: those of every per-step tensor
  at::Tensor x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr;  // undefined if absent
  at::Tensor batch_sizes, lengths, reset;

  std::vector<int64_t> sizes(int64_t last) const {
    std::vector<int64_t> all = leading;
    all.push_back(last);
    return all;
  }
};

// Everything but the weights, for a layer of H hidden units and P numbers in h.
LayerTensors check_inputs(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                          const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H, int64_t P);

LayerTensors check_layer(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                         const OptionalTensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                         const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                         const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                         const OptionalTensor& reset);

// [gates * H] or absent, both or none.
void check_biases(LayerTensors& layer, const OptionalTensor& b_ih, const OptionalTensor& b_hh);

// What forward returns; a tensor that the cell does not have, or that is not kept, has no elements.
struct ForwardResults {
  at::Tensor y, h_n, c_n, c, slots;
};
ForwardResults allocate_results(const LayerTensors& layer, int64_t keep);

// What backward receives besides the layer; undefined if absent.
struct BackwardInputs {
  at::Tensor dy, dh_n, dc_n, dc;
  at::Tensor y, c;
  at::Tensor slots;  // undefined if forward did not keep them, or the cell has no use for them
};
BackwardInputs check_backward(const LayerTensors& layer, const OptionalTensor& dy,
                              const OptionalTensor& dh_n, const OptionalTensor& dc_n,
                              const OptionalTensor& dc, const at::Tensor& y, const at::Tensor& c,
                              const at::Tensor& slots);

// What backward returns; a gradient that is not needed, or has no tensor, has no elements.
struct LayerGradients {
  at::Tensor dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr;
};
LayerGradients allocate_gradients(const LayerTensors& layer, bool needs_x, bool needs_weights);

using ForwardTuple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using BackwardTuple = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                 at::Tensor, at::Tensor>;
inline ForwardTuple as_tuple(const ForwardResults& r) { return {r.y, r.h_n, r.c_n, r.c, r.slots}; }
inline BackwardTuple as_tuple(const LayerGradients& g) {
  return {g.dx, g.dh0, g.dc0, g.dw_ih, g.dw_hh, g.db_ih, g.db_hh, g.dw_hr};
}

// x with zeros beyond each sequence's end, for products over all rows: the gradient there is zero, but zero
// times NaN or infinity, which padding may hold, is NaN.
at::Tensor without_padding(const LayerTensors& layer);

}  // namespace fastrnn
