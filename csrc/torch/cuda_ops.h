// The ops on a GPU: tensors to plain pointers, memory from torch's allocator, and the choice of a
// driver. What belongs to CUDA is behind Gpu, so that tests can run all of this on emulated kernels:
//
//   Gpu(const Tensor& x, bool tf32)   from here on x's device and its current stream are in use
//   cudaStream_t stream()
//   cuda::Blas& blas()
//   bool tf32()                whether products of float32 may be rounded to TF32
//   int arch()                 of the device: 90 is sm_90
#pragma once

#include "cuda/common/padding.h"
#include "cuda/dispatch.h"
#include "torch/pointers.h"

namespace fastrnn::cuda {

inline Tensor workspace_of(int64_t bytes, const Tensor& x) {
  return empty({bytes}, Dtype::uint8, x.device());
}

// x with zeros beyond each sequence's end, for products over all rows: the gradient there is zero, but zero
// times NaN or infinity, which padding may hold, is NaN.
inline Tensor without_padding(const LayerTensors& layer, const auto& gpu) {
  if (!layer.lengths.defined()) return layer.x.contiguous();
  Tensor x = empty(Sizes(layer.x.sizes()), layer.x.dtype(), layer.x.device());
  copy_to(x, layer.x);
  zero_padding(x.data<void>(), layer.lengths.data<int64_t>(), layer.T, layer.B,
               layer.I * bytes_of(x.dtype()), gpu.stream());
  return x;
}

template <class Args>
Problem problem_of(const Args& a, Pass pass, const auto& gpu) {
  using Storage = std::remove_cvref_t<decltype(*a.weights.w_ih)>;
  return {a.cell,      type_of<Storage>,          pass,       a.sequence.T, a.sequence.B,
          a.weights.H, a.weights.w_hr != nullptr, gpu.tf32(), gpu.arch()};
}

template <class Gpu>
ForwardTuple forward(std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
                     const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih,
                     const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                     const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                     const OptionalTensor& reset, bool reverse, int64_t keep, int64_t precision,
                     const OptionalTensor& unit_weights, const OptionalTensor& step_inputs) {
  Gpu gpu(x, precision != 0);
  LayerTensors layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  check_given(layer, unit_weights, step_inputs);
  layer.x = layer.x.contiguous();
  const OwnedSequence sequence(layer, reverse);
  ForwardResults out = allocate_results(layer, keep);
  for_type(x.dtype(), [&](auto tag) {
    using S = decltype(tag);
    if (layer.rows == 0) return;
    const ForwardArgs<S> a = forward_args<S>(layer, sequence, out);
    const Driver<S>& driver = *choose_driver<S>(problem_of(a, Pass::forward, gpu)).driver;
    const Tensor workspace = workspace_of(driver.forward_workspace(a), x);
    driver.forward(a, workspace.data<void>(), gpu.blas(), gpu.stream());
  });
  return as_tuple(std::move(out));
}

template <class Gpu>
BackwardTuple backward(std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const OptionalTensor& dc, const Tensor& x,
                       const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c,
                       const Tensor& slots, std::array<bool, 2> needs, int64_t precision,
                       const OptionalTensor& unit_weights, const OptionalTensor& step_inputs) {
  Gpu gpu(x, precision != 0);
  LayerTensors layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  check_given(layer, unit_weights, step_inputs);
  layer.x = needs[1] ? without_padding(layer, gpu) : layer.x.contiguous();
  const OwnedSequence sequence(layer, reverse);
  const BackwardInputs in = check_backward(layer, dy, dh_n, dc_n, dc, y, c, slots);
  LayerGradients out = allocate_gradients(layer, needs[0], needs[1]);
  for_type(x.dtype(), [&](auto tag) {
    using S = decltype(tag);
    if (layer.rows == 0) {
      for (const Tensor* t : {&out.dw_ih, &out.dw_hh, &out.db_ih, &out.db_hh, &out.dw_hr}) zero(*t);
      return;
    }
    const BackwardArgs<S> a = backward_args<S>(layer, sequence, in, out);
    const Driver<S>& driver = *choose_driver<S>(problem_of(a, Pass::backward, gpu)).driver;
    const Tensor workspace = workspace_of(driver.backward_workspace(a), x);
    driver.backward(a, workspace.data<void>(), gpu.blas(), gpu.stream());
  });
  return as_tuple(std::move(out));
}

// The driver that would compute a layer of x's dtype on its device, and why.
template <class Gpu>
std::tuple<std::string, std::string> driver_for(const Tensor& x, std::string_view cell, int64_t T,
                                                int64_t B, int64_t H, bool projects, bool backward,
                                                int64_t precision) {
  const Gpu gpu(x, precision != 0);
  std::tuple<std::string, std::string> answer;
  for_type(x.dtype(), [&](auto tag) {
    using S = decltype(tag);
    const Pass pass = backward ? Pass::backward : Pass::forward;
    const auto choice =
        choose_driver<S>({find_cell(cell), type_of<S>, pass, T, B, H, projects, gpu.tf32(), gpu.arch()});
    answer = {choice.driver->name, choice.reason()};
  });
  return answer;
}

// The names of all drivers, with spaces between.
inline std::string driver_names() {
  std::string names;
  for (const auto* driver : Drivers<float>::all())
    names += (names.empty() ? "" : " ") + std::string(driver->name);
  return names;
}

}  // namespace fastrnn::cuda
