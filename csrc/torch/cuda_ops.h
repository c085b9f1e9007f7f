// The ops on a GPU: tensors to plain pointers, memory from torch's allocator, and the choice of a
// driver. What belongs to CUDA is behind Gpu, so that tests can run all of this on emulated kernels:
//
//   Gpu(const at::Tensor& x)   from here on x's device and its current stream are in use
//   cudaStream_t stream()
//   cuda::Blas& blas()
//   bool tf32()                whether products of float32 may be rounded to TF32
//   int arch()                 of the device: 90 is sm_90
#pragma once

#include "cuda/dispatch.h"
#include "cuda/step/step.h"
#include "torch/pointers.h"

namespace fastrnn::cuda {

using at::Tensor;

inline Tensor workspace_of(int64_t bytes, const Tensor& x) {
  return at::empty({bytes}, x.options().dtype(at::kByte));
}

template <class Args>
Problem problem_of(const Args& a, Pass pass, const auto& gpu) {
  using Storage = std::remove_cvref_t<decltype(*a.weights.w_ih)>;
  return {a.cell,      type_of<Storage>,          pass,       a.sequence.T, a.sequence.B,
          a.weights.H, a.weights.w_hr != nullptr, gpu.tf32(), gpu.arch()};
}

template <class Gpu>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih,
    const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
    bool reverse, int64_t keep) {
  Gpu gpu(x);
  Layer layer = check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  layer.x = layer.x.contiguous();
  const SequenceOf sequence(layer, reverse);
  const auto options = x.options();
  const bool has_c = layer.cell->has_c;
  const auto none = [&] { return at::empty({0}, options); };
  const Tensor y = at::empty(layer.sizes(layer.P), options);
  const Tensor h_n = at::empty({layer.B, layer.P}, options);
  const Tensor c_n = has_c ? at::empty({layer.B, layer.H}, options) : none();
  const Tensor c = has_c && keep >= keep_c ? at::empty(layer.sizes(layer.H), options) : none();
  const Tensor slots = layer.cell->keeps_slots && keep >= keep_slots
                           ? at::empty(layer.sizes(layer.cell->slots * layer.H), options)
                           : none();
  for_type(x.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    if (layer.rows == 0) return;
    ForwardArgs<S> a{};
    a.cell = layer.id;
    a.sequence = sequence;
    a.weights = weights_of<S>(layer);
    a.x = data<S>(layer.x);
    a.x_step = layer.B * layer.I;
    a.x_row = layer.I;
    a.h0 = data<S>(layer.h0);
    a.c0 = data<S>(layer.c0);
    a.y = data<S>(y);
    a.h_n = data<S>(h_n);
    a.c_n = data<S>(c_n);
    a.c = data<S>(c);
    a.slots = data<S>(slots);
    const Driver<S>& driver = *choose_driver<S>(problem_of(a, Pass::forward, gpu)).driver;
    const Tensor workspace = workspace_of(driver.forward_workspace(a), x);
    driver.forward(a, workspace.data_ptr(), gpu.blas(), gpu.stream());
  });
  return {y, h_n, c_n, c, slots};
}

template <class Gpu>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n, const OptionalTensor& dc_n,
    const OptionalTensor& dc, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
    const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
    const OptionalTensor& w_hr, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c, const Tensor& slots,
    std::array<bool, 2> needs) {
  Gpu gpu(x);
  Layer layer = check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  layer.x = (needs[1] ? without_padding(layer) : layer.x).contiguous();
  const CellInfo& info = *layer.cell;
  const SequenceOf sequence(layer, reverse);
  const auto options = x.options();
  const auto given = [&](const Tensor& t, at::IntArrayRef sizes, const char* name) {
    TORCH_CHECK(t.sizes() == sizes && t.scalar_type() == x.scalar_type() && t.device() == x.device(),
                "fastrnn: ", name, " must have the shape ", sizes, " and the input's dtype and device");
    return t.contiguous();
  };
  const auto gradient = [&](const OptionalTensor& t, at::IntArrayRef sizes, const char* name) {
    return t.has_value() ? given(*t, sizes, name) : Tensor();
  };
  const auto like = [&](const Tensor& t, bool wanted = true) {
    return t.defined() && wanted ? at::empty(t.sizes(), options) : at::empty({0}, options);
  };
  const Tensor grad_y = gradient(dy, layer.sizes(layer.P), "dy");
  const Tensor grad_h_n = gradient(dh_n, {layer.B, layer.P}, "dh_n");
  const Tensor grad_c_n = info.has_c ? gradient(dc_n, {layer.B, layer.H}, "dc_n") : Tensor();
  const Tensor grad_c = info.has_c ? gradient(dc, layer.sizes(layer.H), "dc") : Tensor();
  const Tensor all_y = given(y, layer.sizes(layer.P), "y");
  const Tensor all_c = info.has_c ? given(c, layer.sizes(layer.H), "c of every step") : Tensor();
  const Tensor all_slots =
      slots.numel() == 0 ? Tensor() : given(slots, layer.sizes(info.slots * layer.H), "slots");

  const Tensor dx = like(layer.x, needs[0]), dh0 = like(layer.h0), dc0 = like(layer.c0);
  const Tensor dw_ih = like(layer.w_ih, needs[1]), dw_hh = like(layer.w_hh, needs[1]);
  const Tensor db_ih = like(layer.b_ih, needs[1]), db_hh = like(layer.b_hh, needs[1]);
  const Tensor dw_hr = like(layer.w_hr, needs[1]);
  for_type(x.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    if (layer.rows == 0) {
      for (const Tensor& t : {dw_ih, dw_hh, db_ih, db_hh, dw_hr}) t.zero_();
      return;
    }
    BackwardArgs<S> a{};
    a.cell = layer.id;
    a.sequence = sequence;
    a.weights = weights_of<S>(layer);
    a.x = data<S>(layer.x);
    a.h0 = data<S>(layer.h0);
    a.c0 = data<S>(layer.c0);
    a.y = data<S>(all_y);
    a.c = data<S>(all_c);
    a.slots = data<S>(all_slots);
    a.dy = data<S>(grad_y);
    a.dh_n = data<S>(grad_h_n);
    a.dc_n = data<S>(grad_c_n);
    a.dc = data<S>(grad_c);
    a.dx = data<S>(dx);
    a.dh0 = data<S>(dh0);
    a.dc0 = data<S>(dc0);
    a.dw_ih = data<S>(dw_ih);
    a.dw_hh = data<S>(dw_hh);
    a.db_ih = data<S>(db_ih);
    a.db_hh = data<S>(db_hh);
    a.dw_hr = data<S>(dw_hr);
    const Driver<S>& driver = *choose_driver<S>(problem_of(a, Pass::backward, gpu)).driver;
    const Tensor workspace = workspace_of(driver.backward_workspace(a), x);
    driver.backward(a, workspace.data_ptr(), gpu.blas(), gpu.stream());
  });
  return {dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr};
}

// The driver that would compute a layer of x's dtype on its device, and why.
template <class Gpu>
std::tuple<std::string, std::string> driver_for(const Tensor& x, std::string_view cell, int64_t T,
                                                int64_t B, int64_t H, bool projects, bool backward) {
  const Gpu gpu(x);
  std::tuple<std::string, std::string> answer;
  for_type(x.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    const Pass pass = backward ? Pass::backward : Pass::forward;
    const auto choice =
        choose_driver<S>({find_cell(cell), type_of<S>, pass, T, B, H, projects, gpu.tf32(), gpu.arch()});
    answer = {choice.driver->name, choice.reason()};
  });
  return answer;
}

inline std::vector<std::string> driver_names() {
  std::vector<std::string> names;
  for (const auto* driver : drivers<float>()) names.emplace_back(driver->name);
  return names;
}

}  // namespace fastrnn::cuda
