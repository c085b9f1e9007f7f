// What every backend checks and derives from an op's tensors, in one sentence each where it is wrong.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string_view>

#include "cells/registry.h"

namespace fastrnn {

using OptionalTensor = std::optional<at::Tensor>;

// What an op keeps from forward for backward.
enum Keep : int64_t { keep_nothing = 0, keep_c = 1, keep_slots = 2 };

inline CellId find_cell(std::string_view name) {
  for (int id = 0; id < static_cast<int>(CellId::count); ++id) {
    if (name == cell_info(static_cast<CellId>(id)).name) return static_cast<CellId>(id);
  }
  TORCH_CHECK(false, "fastrnn: there is no cell named '", name, "'");
}

// One layer in one direction as tensors, checked, contiguous where drivers need it.
struct Layer {
  CellId id;
  const CellInfo* cell;
  int64_t T, B, rows, I, H, P;
  std::vector<int64_t> leading;  // x's dimensions before the last: those of every per-step tensor
  at::Tensor x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr;  // absent ones undefined
  at::Tensor batch_sizes, lengths, reset;

  std::vector<int64_t> sizes(int64_t last) const {
    std::vector<int64_t> all = leading;
    all.push_back(last);
    return all;
  }
};

// All but the weights, for a layer of H hidden units whose h has P numbers.
Layer check_inputs(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                   const OptionalTensor& c0, const OptionalTensor& batch_sizes,
                   const OptionalTensor& lengths, const OptionalTensor& reset, int64_t H, int64_t P);

Layer check_layer(std::string_view cell, const at::Tensor& x, const at::Tensor& h0,
                  const OptionalTensor& c0, const at::Tensor& w_ih, const at::Tensor& w_hh,
                  const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                  const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                  const OptionalTensor& reset);

// x with zeros beyond each sequence's end, for products over all rows: there a gradient of zero times
// whatever the padding holds must be zero, and infinities and NaNs would make it NaN.
at::Tensor without_padding(const Layer& layer);

}  // namespace fastrnn
