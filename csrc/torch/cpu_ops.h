// The ops on the CPU; what they compute is in torch/ops.cpp.
#pragma once

#include <array>
#include <vector>

#include "torch/arguments.h"
#include "torch/cpu_kernels.h"

namespace fastrnn {

ForwardTuple forward(std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                     const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                     const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                     const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                     const OptionalTensor& reset, bool reverse, int64_t keep, int64_t precision,
                     const OptionalTensor& unit_weights, const OptionalTensor& step_inputs);

BackwardTuple backward(std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const OptionalTensor& dc, const Tensor& x,
                       const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c,
                       const Tensor& slots, std::array<bool, 2> needs, int64_t precision,
                       const OptionalTensor& unit_weights, const OptionalTensor& step_inputs);

Tensor prepack(std::string_view cell, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
               std::string_view weights, int64_t precision);

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_prepacked(
    std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
    const Tensor& panels, const OptionalTensor& b_ih, const OptionalTensor& b_hh, int64_t hidden_size,
    std::string_view weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, bool reverse, int64_t keep, int64_t precision,
    const OptionalTensor& unit_weights, const OptionalTensor& step_inputs);

Tensor stream(std::string_view cell, const Tensor& x, const Tensor& state, int64_t turn,
              const std::vector<Tensor>& panels, const std::vector<Tensor>& biases, int64_t hidden_size,
              int64_t size, std::string_view weights, int64_t precision);

// Throws ValueError if panels are not those of a layer of these sizes for these kernels.
void check_panels(const LayerTensors& layer, const AnyKernels& kernels, const Tensor& panels);

// Forward of a checked layer into `out`. panels: its matrices as prepack() made them, or null.
void run_forward(const LayerTensors& layer, const Sequence& sequence, const AnyKernels& kernels,
                 const void* panels, const ForwardResults& out);

}  // namespace fastrnn
