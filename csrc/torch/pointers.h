// A checked layer's tensors as the drivers' plain pointers and sizes.
#pragma once

#include <type_traits>
#include <vector>

#include "layer/args.h"
#include "torch/arguments.h"

namespace fastrnn {

// A tensor's memory as the kernels' type; null for an absent or empty tensor.
template <class T>
T* data(const at::Tensor& t) {
  return t.defined() && t.numel() > 0 ? static_cast<T*>(t.data_ptr()) : nullptr;
}

// Calls body(tag) with a value of the kernels' storage type.
template <class Body>
void for_type(at::ScalarType type, Body body) {
  switch (type) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
    case at::kBFloat16:
      return body(BFloat16{});
    case at::kHalf:
      return body(Half{});
    default:
      TORCH_CHECK_VALUE(
          false, "fastrnn: the kernels compute in float32, float64, bfloat16 and float16, not in ", type);
  }
}

// A layer's sequence; owns the first rows of a packed batch's steps.
struct OwnedSequence : Sequence {
  std::vector<int64_t> first_rows;

  OwnedSequence(const LayerTensors& layer, bool reverse_) : Sequence{} {
    T = layer.T;
    B = layer.B;
    rows = layer.rows;
    lengths = data<int64_t>(layer.lengths);
    reset = data<uint8_t>(layer.reset);
    reverse = reverse_;
    if (!layer.batch_sizes.defined()) return;
    const int64_t* size = layer.batch_sizes.const_data_ptr<int64_t>();
    first_rows.assign(T + 1, 0);
    for (int64_t t = 0; t < T; ++t) first_rows[t + 1] = first_rows[t] + size[t];
    first = first_rows.data();
  }
  OwnedSequence(const OwnedSequence&) = delete;
};

template <class S>
Weights<S> weights_of(const LayerTensors& layer) {
  return {layer.I,
          layer.H,
          layer.P,
          data<S>(layer.w_ih),
          data<S>(layer.w_hh),
          data<S>(layer.b_ih),
          data<S>(layer.b_hh),
          data<S>(layer.w_hr)};
}

// What forward and backward are both given.
template <class Args, class S = std::remove_cvref_t<decltype(*Args::x)>>
Args args_of(const LayerTensors& layer, const Sequence& sequence) {
  Args a{};
  a.cell = layer.id;
  a.sequence = sequence;
  a.weights = weights_of<S>(layer);
  a.x = data<S>(layer.x);
  a.x_step = layer.x.dim() == 3 ? layer.x.stride(0) : 0;
  a.x_row = layer.x.stride(-2);
  a.h0 = data<S>(layer.h0);
  a.c0 = data<S>(layer.c0);
  return a;
}

template <class S>
ForwardArgs<S> forward_args(const LayerTensors& layer, const Sequence& sequence,
                            const ForwardResults& out) {
  auto a = args_of<ForwardArgs<S>>(layer, sequence);
  a.y = data<S>(out.y);
  a.h_n = data<S>(out.h_n);
  a.c_n = data<S>(out.c_n);
  a.c = data<S>(out.c);
  a.slots = data<S>(out.slots);
  return a;
}

template <class S>
BackwardArgs<S> backward_args(const LayerTensors& layer, const Sequence& sequence, const BackwardInputs& in,
                              const LayerGradients& out) {
  auto a = args_of<BackwardArgs<S>>(layer, sequence);
  a.y = data<S>(in.y);
  a.c = data<S>(in.c);
  a.slots = data<S>(in.slots);
  a.dy = data<S>(in.dy);
  a.dh_n = data<S>(in.dh_n);
  a.dc_n = data<S>(in.dc_n);
  a.dc = data<S>(in.dc);
  a.dx = data<S>(out.dx);
  a.dh0 = data<S>(out.dh0);
  a.dc0 = data<S>(out.dc0);
  a.dw_ih = data<S>(out.dw_ih);
  a.dw_hh = data<S>(out.dw_hh);
  a.db_ih = data<S>(out.db_ih);
  a.db_hh = data<S>(out.db_hh);
  a.dw_hr = data<S>(out.dw_hr);
  return a;
}

}  // namespace fastrnn
