// A checked layer's tensors as the drivers' plain pointers and sizes.
#pragma once

#include <type_traits>
#include <vector>

#include "layer/args.h"
#include "torch/arguments.h"

namespace fastrnn {

// Calls body(tag) with a value of the kernels' storage type.
template <class Body>
void for_type(Dtype dtype, Body body) {
  switch (dtype) {
    case Dtype::float32:
      return body(float{});
    case Dtype::float64:
      return body(double{});
    case Dtype::bfloat16:
      return body(BFloat16{});
    case Dtype::float16:
      return body(Half{});
    default:
      fail<std::invalid_argument>(
          "fastrnn: the kernels compute in float32, float64, bfloat16 and float16, not in ", dtype);
  }
}

// A layer's sequence; owns the first rows of a packed batch's steps.
struct OwnedSequence : Sequence {
  std::vector<int64_t> first_rows;

  OwnedSequence(const LayerTensors& layer, bool reverse_) : Sequence{} {
    T = layer.T;
    B = layer.B;
    rows = layer.rows;
    lengths = layer.lengths.data<int64_t>();
    reset = layer.reset.data<uint8_t>();
    reverse = reverse_;
    if (!layer.batch_sizes.defined()) return;
    const int64_t* size = layer.batch_sizes.data<int64_t>();
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
          layer.w_ih.data<S>(),
          layer.w_hh.data<S>(),
          layer.b_ih.data<S>(),
          layer.b_hh.data<S>(),
          layer.w_hr.data<S>(),
          layer.unit_weights.data<S>()};
}

// What forward and backward are both given.
template <class Args, class S = std::remove_cvref_t<decltype(*Args::x)>>
Args args_of(const LayerTensors& layer, const Sequence& sequence) {
  Args a{};
  a.cell = layer.id;
  a.sequence = sequence;
  a.weights = weights_of<S>(layer);
  a.x = layer.x.data<S>();
  a.x_step = layer.x.dim() == 3 ? layer.x.stride(0) : 0;
  a.x_row = layer.x.stride(-2);
  a.h0 = layer.h0.data<S>();
  a.c0 = layer.c0.data<S>();
  if (layer.step_inputs.defined()) {
    const Tensor& t = layer.step_inputs;
    a.step_inputs = {t.data<S>(), t.dim() == 3 ? t.stride(0) : 0, t.stride(-2)};
  }
  return a;
}

template <class S>
ForwardArgs<S> forward_args(const LayerTensors& layer, const Sequence& sequence,
                            const ForwardResults& out) {
  auto a = args_of<ForwardArgs<S>>(layer, sequence);
  a.y = out.y.data<S>();
  a.h_n = out.h_n.data<S>();
  a.c_n = out.c_n.data<S>();
  a.c = out.c.data<S>();
  a.slots = out.slots.data<S>();
  return a;
}

template <class S>
BackwardArgs<S> backward_args(const LayerTensors& layer, const Sequence& sequence, const BackwardInputs& in,
                              const LayerGradients& out) {
  auto a = args_of<BackwardArgs<S>>(layer, sequence);
  a.y = in.y.data<S>();
  a.c = in.c.data<S>();
  a.slots = in.slots.data<S>();
  a.dy = in.dy.data<S>();
  a.dh_n = in.dh_n.data<S>();
  a.dc_n = in.dc_n.data<S>();
  a.dc = in.dc.data<S>();
  a.dx = out.dx.data<S>();
  a.dh0 = out.dh0.data<S>();
  a.dc0 = out.dc0.data<S>();
  a.dw_ih = out.dw_ih.data<S>();
  a.dw_hh = out.dw_hh.data<S>();
  a.db_ih = out.db_ih.data<S>();
  a.db_hh = out.db_hh.data<S>();
  a.dw_hr = out.dw_hr.data<S>();
  a.d_unit_weights = out.d_unit_weights.data<S>();
  a.d_step_inputs = out.d_step_inputs.data<S>();
  return a;
}

}  // namespace fastrnn
