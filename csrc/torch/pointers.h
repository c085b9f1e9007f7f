// A checked layer's tensors as the drivers' plain pointers and sizes.
#pragma once

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
      TORCH_CHECK(false, "fastrnn: the kernels compute in float32, float64, bfloat16 and float16, not in ",
                  type);
  }
}

// A layer's sequence; keeps the first rows of a packed batch's steps alive.
struct SequenceOf : Sequence {
  std::vector<int64_t> first_rows;

  SequenceOf(const Layer& layer, bool reverse_) : Sequence{} {
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
};

template <class S>
Weights<S> weights_of(const Layer& layer) {
  return {layer.I,
          layer.H,
          layer.P,
          data<S>(layer.w_ih),
          data<S>(layer.w_hh),
          data<S>(layer.b_ih),
          data<S>(layer.b_hh),
          data<S>(layer.w_hr),
          nullptr};
}

}  // namespace fastrnn
