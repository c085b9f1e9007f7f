// Forward on the CPU, with weights as tensors or packed beforehand.
#include <algorithm>
#include <cmath>

#include "cpu/passes.h"
#include "torch/cpu_ops.h"
#include "torch/pointers.h"

namespace fastrnn {

void run_forward(const LayerTensors& layer, const Sequence& sequence, const AnyKernels& kernels,
                 const void* panels, const ForwardResults& out) {
  with_kernels(kernels, [&](const auto& table) {
    run_forward(forward_args<StorageOf<decltype(table)>>(layer, sequence, out), table, panels);
  });
}

ForwardTuple forward(std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                     const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                     const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                     const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                     const OptionalTensor& reset, bool reverse, int64_t keep, int64_t precision,
                     const OptionalTensor& unit_weights, const OptionalTensor& step_inputs) {
  LayerTensors layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  check_given(layer, unit_weights, step_inputs);
  const OwnedSequence sequence(layer, reverse);
  const AnyKernels kernels =
      choose_kernels(x.dtype(), Packing::own, static_cast<Precision>(precision), split_pays(sequence));
  ForwardResults out = allocate_results(layer, keep);
  run_forward(layer, sequence, kernels, nullptr, out);
  return as_tuple(std::move(out));
}

namespace {

// The sizes of a layer, from its matrices.
LayerTensors check_matrices(const CellInfo& info, const Tensor& w_ih, const Tensor& w_hh,
                            const OptionalTensor& w_hr) {
  FASTRNN_CHECK_VALUE(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.size(0) == w_hh.size(0) &&
                          w_ih.size(0) % info.gates == 0 && w_hh.dtype() == w_ih.dtype(),
                      "fastrnn: w_ih and w_hh must have the shapes [", info.gates,
                      " * hidden_size, .] and one dtype, got ", w_ih.sizes(), " of ", w_ih.dtype(), " and ",
                      w_hh.sizes(), " of ", w_hh.dtype());
  LayerTensors layer;
  layer.I = w_ih.size(1);
  layer.H = w_ih.size(0) / info.gates;
  layer.P = w_hh.size(1);
  FASTRNN_CHECK_VALUE(layer.I > 0 && layer.H > 0 && layer.P > 0, "fastrnn: sizes must be positive");
  FASTRNN_CHECK_VALUE(!w_hr.defined() || info.projects, "fastrnn: ", info.name, " has no projection");
  FASTRNN_CHECK_VALUE(
      w_hr.defined() ? w_hr.has_sizes(Sizes{layer.P, layer.H}) && w_hr.dtype() == w_ih.dtype()
                     : layer.P == layer.H,
      "fastrnn: w_hr must have the shape [", layer.P, ", ", layer.H, "] and the dtype of w_ih");
  layer.w_ih = w_ih.contiguous();
  layer.w_hh = w_hh.contiguous();
  if (w_hr.defined()) layer.w_hr = w_hr.contiguous();
  return layer;
}

int64_t panel_bytes(const LayerTensors& layer, const CellInfo& info, const AnyKernels& kernels) {
  return with_kernels(kernels, [&](const auto& table) {
    return pack_weights(info, weights_of<StorageOf<decltype(table)>>(layer), table, nullptr);
  });
}

}  // namespace

void check_panels(const LayerTensors& layer, const AnyKernels& kernels, const Tensor& panels) {
  FASTRNN_CHECK_VALUE(layer.P == layer.H || layer.cell->projects, "fastrnn: ", layer.cell->name,
                      " has no projection");
  const int64_t expected = panel_bytes(layer, *layer.cell, kernels);
  FASTRNN_CHECK_VALUE(
      panels.dtype() == Dtype::uint8 && panels.numel() == expected && panels.is_contiguous(),
      "fastrnn: these weights were packed for a layer of other sizes or another precision: ",
      panels.numel(), " bytes, expected ", expected);
}

Tensor prepack(std::string_view cell, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
               std::string_view weights, int64_t precision) {
  const CellInfo& info = cell_info(find_cell(cell));
  const Packing packing = find_packing(weights, w_ih.dtype());
  const LayerTensors layer = check_matrices(info, w_ih, w_hh, w_hr);
  if (packing == Packing::int8) {
    for (const Tensor* w : {&layer.w_ih, &layer.w_hh, &layer.w_hr}) {
      const float* numbers = w->data<float>();
      FASTRNN_CHECK_VALUE(
          std::all_of(numbers, numbers + w->numel(), [](float n) { return std::isfinite(n); }),
          "weights with NaN or infinity have no int8 form");
    }
  }
  const AnyKernels kernels =
      choose_kernels(w_ih.dtype(), packing, static_cast<Precision>(precision), /*may_split=*/false);
  Tensor panels = empty({panel_bytes(layer, info, kernels)}, Dtype::uint8, w_ih.device());
  with_kernels(kernels, [&](const auto& table) {
    pack_weights(info, weights_of<StorageOf<decltype(table)>>(layer), table, panels.data<char>());
  });
  return panels;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_prepacked(
    std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
    const Tensor& panels, const OptionalTensor& b_ih, const OptionalTensor& b_hh, int64_t hidden_size,
    std::string_view weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, bool reverse, int64_t keep, int64_t precision,
    const OptionalTensor& unit_weights, const OptionalTensor& step_inputs) {
  FASTRNN_CHECK_VALUE(h0.dim() == 2, "fastrnn: h0 must have 2 dimensions, got ", h0.dim());
  LayerTensors layer = check_inputs(cell, x, h0, c0, batch_sizes, lengths, reset, hidden_size, h0.size(1));
  check_biases(layer, b_ih, b_hh);
  check_given(layer, unit_weights, step_inputs);
  const AnyKernels kernels = choose_kernels(x.dtype(), find_packing(weights, x.dtype()),
                                            static_cast<Precision>(precision), /*may_split=*/false);
  check_panels(layer, kernels, panels);
  ForwardResults out = allocate_results(layer, std::min<int64_t>(keep, keep_c));
  run_forward(layer, OwnedSequence(layer, reverse), kernels, panels.data<void>(), out);
  return {std::move(out.y), std::move(out.h_n), std::move(out.c_n), std::move(out.c)};
}

}  // namespace fastrnn
