// The ops on the CPU: tensors to plain pointers, and products over whole sequences where they are torch's.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/driver.h"
#include "torch/pointers.h"

namespace fastrnn {
namespace {

using at::Tensor;

// The least exact products of float32 that torch.set_float32_matmul_precision or
// torch.backends.mkldnn.rnn.fp32_precision allow: of operands rounded to bfloat16 ("medium", "bf16"), or of
// each as the sum of two bfloat16 ("high", "tf32").
at::Float32MatmulPrecision allowed_precision() {
  using Precision = at::Float32MatmulPrecision;
  const at::Context& context = at::globalContext();
  const Precision matmul = context.float32MatmulPrecision();
  const at::Float32Precision rnn = context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::RNN);
  if (matmul == Precision::MEDIUM || rnn == at::Float32Precision::BF16) return Precision::MEDIUM;
  if (matmul == Precision::HIGH || rnn == at::Float32Precision::TF32) return Precision::HIGH;
  return Precision::HIGHEST;
}

// How a layer's matrices are held: as the tensors' own type, or packed narrower.
enum class Packing { own, bf16, int8 };

// Whether products of split floats, where an instruction set has them, take less time than exact ones:
// tiles want several rows to a step, and panels many rows in all.
bool split_pays(const Sequence& sequence) { return sequence.B >= 8 && sequence.rows > 128; }

// Calls body(kernels) with the table that serves tensors of type S on this processor.
template <class S, class Body>
auto with_kernels(Packing packing, bool may_split, Body body) {
  const Target& t = target();
  if constexpr (std::is_same_v<S, float>) {
    if (packing == Packing::bf16) return body(*t.f32_w16);
    if (packing == Packing::int8) return body(*t.f32_w8);
    if (t.f32_bf16_dot == nullptr) return body(*t.f32);  // without products of bfloat16 nothing is allowed
    const at::Float32MatmulPrecision allowed = allowed_precision();
    if (allowed == at::Float32MatmulPrecision::MEDIUM) return body(*t.f32_bf16_dot);
    const bool split = t.f32_split && allowed == at::Float32MatmulPrecision::HIGH && may_split;
    return split ? body(*t.f32_split) : body(*t.f32);
  } else if constexpr (std::is_same_v<S, double>) {
    return body(*t.f64);
  } else if constexpr (std::is_same_v<S, Half>) {
    return body(*t.f16);
  } else {
    return t.bf16_dot ? body(*t.bf16_dot) : body(*t.bf16);
  }
}

template <class S>
void run(const ForwardArgs<S>& args, Packing packing) {
  // Weights packed beforehand serve calls of any number of rows.
  const bool may_split = args.weights.panels == nullptr && split_pays(args.sequence);
  with_kernels<S>(packing, may_split, [&](const auto& kernels) { run_forward(args, kernels); });
}

template <class S>
void run(const BackwardArgs<S>& args) {
  if constexpr (std::is_same_v<S, float>) {
    // For the table of one type, whatever another thread has set since that was decided.
    if (args.d_slots == nullptr) return run_backward(args, *target().f32);
  }
  with_kernels<S>(Packing::own, split_pays(args.sequence), [&](const auto& kernels) {
    if constexpr (std::is_same_v<typename std::decay_t<decltype(kernels)>::Panel,
                                 typename std::decay_t<decltype(kernels)>::Operand>) {
      run_backward(args, kernels);
    }
  });
}

// Whether backward forms the gradients of weights and input itself, which needs no rows of what it
// multiplies beyond a chunk. It does so where all is of one type, and rows and columns make whole tiles.
bool forms_gradients(const Layer& layer, const Sequence& sequence) {
  constexpr int64_t few = 64;
  if (layer.rows < few || layer.I > 16 * layer.H) return false;
  bool one_type = false;
  for_type(layer.x.scalar_type(), [&](auto tag) {
    with_kernels<decltype(tag)>(Packing::own, split_pays(sequence), [&](const auto& kernels) {
      one_type = std::decay_t<decltype(kernels)>::one_type;
    });
  });
  return one_type;
}

struct Kept {
  Tensor y, h_n, c_n, c, slots;
};

// Where forward is given something better than its defaults.
struct Given {
  Tensor panels;  // the layer's matrices as prepack() made them,
  Packing packing = Packing::own;
  Tensor slots;  // [rows, S * H] to be written to
};

Kept forward_layer(const Layer& layer, const Sequence& sequence, int64_t keep, const Given& given = {}) {
  const auto options = layer.x.options();
  const bool has_c = layer.cell->has_c;
  const auto none = [&] { return at::empty({0}, options); };
  Kept out;
  out.y = at::empty(layer.sizes(layer.P), options);
  out.h_n = at::empty({layer.B, layer.P}, options);
  out.c_n = has_c ? at::empty({layer.B, layer.H}, options) : none();
  out.c = has_c && keep >= keep_c ? at::empty(layer.sizes(layer.H), options) : none();
  if (given.slots.defined()) {
    out.slots = given.slots;
  } else if (layer.cell->keeps_slots && keep >= keep_slots) {
    out.slots = at::empty(layer.sizes(layer.cell->slots * layer.H), options);
  } else {
    out.slots = none();
  }
  for_type(layer.x.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    ForwardArgs<S> a{};
    a.cell = layer.id;
    a.sequence = sequence;
    a.weights = weights_of<S>(layer);
    if (given.panels.defined()) {
      a.weights.panels = given.panels.const_data_ptr();
      if (layer.P != layer.H) a.weights.w_hr = static_cast<const S*>(a.weights.panels);
    }
    a.x = data<S>(layer.x);
    a.x_step = layer.x.dim() == 3 ? layer.x.stride(0) : 0;
    a.x_row = layer.x.stride(-2);
    a.h0 = data<S>(layer.h0);
    a.c0 = data<S>(layer.c0);
    a.y = data<S>(out.y);
    a.h_n = data<S>(out.h_n);
    a.c_n = data<S>(out.c_n);
    a.c = data<S>(out.c);
    a.slots = data<S>(out.slots);
    run(a, given.packing);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih,
    const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
    const OptionalTensor& batch_sizes, const OptionalTensor& lengths, const OptionalTensor& reset,
    bool reverse, int64_t keep) {
  const Layer layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  const SequenceOf sequence(layer, reverse);
  Kept out = forward_layer(layer, sequence, keep);
  return {out.y, out.h_n, out.c_n, out.c, out.slots};
}

Packing find_packing(std::string_view weights, at::ScalarType type) {
  if (weights == "own") return Packing::own;
  TORCH_CHECK(type == at::kFloat, "fastrnn: only float32 weights can be packed as ", weights);
  if (weights == "bfloat16") return Packing::bf16;
  TORCH_CHECK(weights == "int8", "fastrnn: weights can be packed as own, bfloat16 or int8, not ", weights);
  return Packing::int8;
}

Tensor prepack(std::string_view cell, const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& w_hr,
               std::string_view weights) {
  const CellInfo& info = cell_info(find_cell(cell));
  const Packing packing = find_packing(weights, w_ih.scalar_type());
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2 && w_ih.size(0) == w_hh.size(0) &&
                  w_ih.size(0) % info.gates == 0 && w_hh.scalar_type() == w_ih.scalar_type(),
              "fastrnn: w_ih and w_hh must have the shapes [", info.gates,
              " * hidden_size, .] and one dtype");
  if (packing == Packing::int8) {
    for (const Tensor& w : {w_ih, w_hh, w_hr.value_or(w_hh)}) {
      TORCH_CHECK_VALUE(w.isfinite().all().item<bool>(), "weights with NaN or infinity have no int8 form");
    }
  }
  Layer layer;
  layer.I = w_ih.size(1);
  layer.H = w_ih.size(0) / info.gates;
  layer.P = w_hh.size(1);
  TORCH_CHECK(layer.I > 0 && layer.H > 0 && layer.P > 0, "fastrnn: sizes must be positive");
  TORCH_CHECK(!w_hr.has_value() || info.has_c, "fastrnn: ", info.name, " has no projection");
  TORCH_CHECK(w_hr.has_value() ? w_hr->sizes() == at::IntArrayRef({layer.P, layer.H}) &&
                                     w_hr->scalar_type() == w_ih.scalar_type()
                               : layer.P == layer.H,
              "fastrnn: w_hr must have the shape [", layer.P, ", ", layer.H, "] and the dtype of w_ih");
  layer.w_ih = w_ih.contiguous();
  layer.w_hh = w_hh.contiguous();
  if (w_hr.has_value()) layer.w_hr = w_hr->contiguous();
  Tensor panels;
  for_type(w_ih.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    with_kernels<S>(packing, /*may_split=*/false, [&](const auto& kernels) {
      const Weights<S> matrices = weights_of<S>(layer);
      const int64_t bytes = pack_weights(info, matrices, kernels, nullptr);
      panels = at::empty({bytes}, w_ih.options().dtype(at::kByte));
      pack_weights(info, matrices, kernels, static_cast<char*>(panels.data_ptr()));
    });
  });
  return panels;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_prepacked(
    std::string_view cell, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
    const Tensor& panels, const OptionalTensor& b_ih, const OptionalTensor& b_hh, int64_t hidden_size,
    std::string_view weights, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, bool reverse, int64_t keep) {
  TORCH_CHECK(h0.dim() == 2, "fastrnn: h0 must have 2 dimensions, got ", h0.dim());
  Layer layer = check_inputs(cell, x, h0, c0, batch_sizes, lengths, reset, hidden_size, h0.size(1));
  const Packing packing = find_packing(weights, x.scalar_type());
  TORCH_CHECK(layer.P == layer.H || layer.cell->has_c, "fastrnn: ", layer.cell->name, " has no projection");
  TORCH_CHECK(b_ih.has_value() == b_hh.has_value(), "fastrnn: b_ih and b_hh come together or not at all");
  for (const auto& [given, kept] : {std::pair{&b_ih, &layer.b_ih}, {&b_hh, &layer.b_hh}}) {
    if (!given->has_value()) continue;
    TORCH_CHECK((*given)->sizes() == at::IntArrayRef({layer.cell->gates * layer.H}) &&
                    (*given)->scalar_type() == x.scalar_type(),
                "fastrnn: biases must have the shape [", layer.cell->gates * layer.H,
                "] and the input's dtype");
    *kept = (*given)->contiguous();
  }
  int64_t expected = 0;
  for_type(x.scalar_type(), [&](auto tag) {
    using S = decltype(tag);
    Weights<S> sizes = weights_of<S>(layer);
    if (layer.P != layer.H) sizes.w_hr = static_cast<const S*>(panels.const_data_ptr());
    with_kernels<S>(packing, /*may_split=*/false, [&](const auto& kernels) {
      expected = pack_weights(*layer.cell, sizes, kernels, nullptr);
    });
  });
  TORCH_CHECK(panels.scalar_type() == at::kByte && panels.numel() == expected && panels.is_contiguous(),
              "fastrnn: these weights were packed for a layer of other sizes or another precision: ",
              panels.numel(), " bytes, expected ", expected);
  Kept out = forward_layer(layer, SequenceOf(layer, reverse), keep, {panels, packing, {}});
  return {out.y, out.h_n, out.c_n, out.c};
}

// [rows, n] the state before each step: `states` [rows, n] of every step, one step later. Zero where a
// sequence has ended.
Tensor previous_states(const Sequence& q, const Tensor& states, const Tensor& initial) {
  const int64_t n = initial.size(1), bytes = n * states.element_size();
  Tensor out = at::empty({q.rows, n}, states.options());
  const char* from = static_cast<const char*>(states.const_data_ptr());
  const char* start = static_cast<const char*>(initial.const_data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  at::parallel_for(0, q.T, 1, [&](int64_t k0, int64_t k1) {
    for (int64_t k = k0; k < k1; ++k) {
      const int64_t t = q.step(k);
      for (int64_t b = 0; b < q.batch(t); ++b) {
        char* row = to + (q.first_row(t) + b) * bytes;
        if (q.resets(t, b) || !q.active(t, b)) {
          memset(row, 0, bytes);
        } else if (k > 0 && q.active(q.step(k - 1), b)) {
          memcpy(row, from + (q.first_row(q.step(k - 1)) + b) * bytes, bytes);
        } else {
          memcpy(row, start + b * bytes, bytes);
        }
      }
    }
  });
  return out;
}

// The slots that forward did not keep, [rows, S * H]. With every state known the steps are independent:
// one step of as many sequences as there are rows, a piece at a time.
Tensor recompute_slots(const Layer& layer, const Tensor& h_prev, const Tensor& c_prev) {
  constexpr int64_t piece = 1536;
  const int64_t width = layer.cell->slots * layer.H;
  Tensor slots = at::empty({layer.rows, width}, layer.x.options());
  const Tensor x = layer.x.reshape({layer.rows, layer.I});
  for (int64_t row = 0; row < layer.rows; row += piece) {
    const int64_t count = std::min(piece, layer.rows - row);
    Layer part = layer;
    part.x = x.narrow(0, row, count);
    part.h0 = h_prev.narrow(0, row, count);
    if (c_prev.defined()) part.c0 = c_prev.narrow(0, row, count);
    part.batch_sizes = part.lengths = part.reset = Tensor();
    part.T = 1;
    part.B = part.rows = count;
    part.leading = {count};
    Given given;
    given.slots = slots.narrow(0, row, count);
    forward_layer(part, SequenceOf(part, false), keep_slots, given);
  }
  return slots;
}

// out = a [n, m]' b [n, k]; in float where the type has no fast product.
void transposed_product(const Tensor& a, const Tensor& b, Tensor out) {
  if (a.scalar_type() != at::kHalf) {
    at::mm_out(out, a.t(), b);
  } else {
    out.copy_(at::mm(a.t().to(at::kFloat), b.to(at::kFloat)));
  }
}

Tensor product(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != at::kHalf) return at::mm(a, b);
  return at::mm(a.to(at::kFloat), b.to(at::kFloat)).to(at::kHalf);
}

// Calls body(first gate, number of gates, columns of d [rows, n * H]) over runs of gates whose slots follow
// each other, which are one operand.
template <class Body>
void for_slot_runs(const Layer& layer, const int* slots, const Tensor& d, Body body) {
  const int gates = layer.cell->gates;
  for (int g = 0; g < gates;) {
    int end = g + 1;
    while (end < gates && slots[end] == slots[end - 1] + 1) ++end;
    body(g, end - g, d.narrow(1, slots[g] * layer.H, (end - g) * layer.H));
    g = end;
  }
}

// [G * H, n] gradient of a weight matrix: d' inputs, gate by gate.
Tensor weight_gradient(const Layer& layer, const int* slots, const Tensor& d, const Tensor& inputs) {
  Tensor gradient = at::empty({layer.cell->gates * layer.H, inputs.size(1)}, inputs.options());
  for_slot_runs(layer, slots, d, [&](int gate, int count, const Tensor& columns) {
    transposed_product(columns, inputs, gradient.narrow(0, gate * layer.H, count * layer.H));
  });
  return gradient;
}

Tensor bias_gradient(const Layer& layer, const int* slots, const Tensor& sums) {
  std::vector<Tensor> parts;
  for_slot_runs(layer, slots, sums, [&](int, int, const Tensor& columns) { parts.push_back(columns); });
  return at::cat(parts, 1).squeeze(0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n, const OptionalTensor& dc_n,
    const OptionalTensor& dc, const Tensor& x, const Tensor& h0, const OptionalTensor& c0,
    const Tensor& w_ih, const Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
    const OptionalTensor& w_hr, const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
    const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c, const Tensor& slots,
    std::array<bool, 2> needs) {
  const at::AutoDispatchBelowADInplaceOrView no_gradients_of_gradients;  // whose are autograd.py's
  Layer layer = check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  const CellInfo& info = *layer.cell;
  const SequenceOf sequence(layer, reverse);
  const auto options = x.options();
  const auto none = [&] { return at::empty({0}, options); };
  const auto gradient = [&](const OptionalTensor& t, at::IntArrayRef sizes, const char* name) {
    if (!t.has_value()) return Tensor();
    TORCH_CHECK(t->sizes() == sizes && t->scalar_type() == x.scalar_type(), "fastrnn: ", name,
                " must have the shape ", sizes, " and the input's dtype");
    return t->contiguous();
  };
  const Tensor grad_y = gradient(dy, layer.sizes(layer.P), "dy");
  const Tensor grad_h_n = gradient(dh_n, {layer.B, layer.P}, "dh_n");
  const Tensor grad_c_n = info.has_c ? gradient(dc_n, {layer.B, layer.H}, "dc_n") : Tensor();
  const Tensor grad_c = info.has_c ? gradient(dc, layer.sizes(layer.H), "dc") : Tensor();
  const auto check_kept = [&](const Tensor& t, int64_t width, const char* name) {
    TORCH_CHECK(t.numel() == layer.rows * width && t.scalar_type() == x.scalar_type(), "fastrnn: ", name,
                " must be what forward kept for the same arguments");
  };
  TORCH_CHECK(!info.has_c || c.numel() > 0 || layer.rows == 0,
              "fastrnn: backward needs the c of every step; call forward with keep >= 1");
  check_kept(y, layer.P, "y");
  if (info.has_c) check_kept(c, layer.H, "c");
  if (info.keeps_slots && slots.numel() > 0) check_kept(slots, info.slots * layer.H, "slots");

  const Tensor h_all = y.contiguous().view({layer.rows, layer.P});
  const Tensor c_all = info.has_c ? c.contiguous().view({layer.rows, layer.H}) : Tensor();
  const bool recompute = info.keeps_slots && slots.numel() == 0 && layer.rows > 0;
  Tensor h_prev;
  const bool forms = (needs[0] || needs[1]) && forms_gradients(layer, sequence);
  if (recompute || (needs[1] && !forms && !(sequence.plain() && layer.T > 0))) {
    h_prev = previous_states(sequence, h_all, layer.h0);
  }
  Tensor kept_slots = slots.contiguous();
  if (recompute) {
    if (needs[1] && layer.w_hr.defined()) layer.x = without_padding(layer);
    kept_slots =
        recompute_slots(layer, h_prev, info.has_c ? previous_states(sequence, c_all, layer.c0) : Tensor());
  }
  // Recomputed slots are nobody else's: their gradients may take their place.
  const Tensor d = forms       ? Tensor()
                   : recompute ? kept_slots
                               : at::empty({layer.rows, info.slots * layer.H}, options);
  const bool projected = layer.w_hr.defined();
  const Tensor dh = projected ? at::empty({layer.rows, layer.P}, options) : Tensor();
  const Tensor dh0 = at::empty({layer.B, layer.P}, options);
  const Tensor dc0 = info.has_c ? at::empty({layer.B, layer.H}, options) : none();
  // The cell's output before the projection, o tanh(c), while the slots are still there.
  Tensor m;
  if (projected && needs[1]) {
    const Tensor o = kept_slots.view({layer.rows, info.slots * layer.H}).narrow(1, 3 * layer.H, layer.H);
    m = o * c_all.tanh();
  }

  Tensor dx = none(), dw_ih = none(), dw_hh = none(), db_ih = none(), db_hh = none(), dw_hr = none();
  Tensor bias_sums;  // [1, S * H]
  if (forms) {
    if (needs[0]) dx = at::empty(layer.sizes(layer.I), options);
    if (needs[1]) {
      dw_ih = at::empty(layer.w_ih.sizes(), options);
      dw_hh = at::empty(layer.w_hh.sizes(), options);
      bias_sums = at::empty({1, info.slots * layer.H}, options);
    }
  }
  const auto run_all = [&] {
    for_type(x.scalar_type(), [&](auto tag) {
      using S = decltype(tag);
      BackwardArgs<S> a{};
      a.cell = layer.id;
      a.sequence = sequence;
      a.weights = weights_of<S>(layer);
      a.h0 = data<S>(layer.h0);
      a.c0 = data<S>(layer.c0);
      a.y = data<S>(h_all);
      a.c = data<S>(c_all);
      a.slots = data<S>(kept_slots);
      a.dy = data<S>(grad_y);
      a.dh_n = data<S>(grad_h_n);
      a.dc_n = data<S>(grad_c_n);
      a.dc = data<S>(grad_c);
      a.d_slots = data<S>(d);
      a.dh = data<S>(dh);
      a.dh0 = data<S>(dh0);
      a.dc0 = data<S>(dc0);
      a.x = data<S>(layer.x);
      a.x_step = layer.x.dim() == 3 ? layer.x.stride(0) : 0;
      a.x_row = layer.x.stride(-2);
      a.dx = data<S>(dx);
      a.dw_ih = data<S>(dw_ih);
      a.dw_hh = data<S>(dw_hh);
      a.d_bias = data<S>(bias_sums);
      run(a);
    });
  };
  run_all();

  const int* x_slot = info.x_slot;
  const int* h_slot = info.h_slot;
  if (needs[0] && !forms) {
    for_slot_runs(layer, x_slot, d, [&](int gate, int count, const Tensor& columns) {
      const Tensor part = product(columns, layer.w_ih.narrow(0, gate * layer.H, count * layer.H));
      dx = gate == 0 ? part : dx + part;
    });
    dx = dx.view(layer.sizes(layer.I));
  }
  // What x holds beyond a sequence's end was multiplied with zero; should it be NaN, it must not be there.
  // A look at the result costs less than a copy of x without what seldom is there.
  const auto meets_padding = [&] {
    return layer.lengths.defined() && !dw_ih.sum().isfinite().item<bool>();
  };
  if (needs[1] && forms) {
    if (meets_padding()) {
      layer.x = without_padding(layer);
      run_all();
    }
  } else if (needs[1]) {
    const auto by_x = [&](const Tensor& rows) {
      return weight_gradient(layer, x_slot, d, rows.reshape({layer.rows, layer.I}));
    };
    dw_ih = by_x(layer.x);
    if (meets_padding()) dw_ih = by_x(without_padding(layer));
    if (h_prev.defined()) {
      dw_hh = weight_gradient(layer, h_slot, d, h_prev);
    } else {
      // The state before each step is the output one step earlier, so nothing need be copied.
      const int64_t others = layer.rows - layer.B;
      const int64_t first = reverse ? others : 0, rest = reverse ? 0 : layer.B;
      dw_hh = weight_gradient(layer, h_slot, d.narrow(0, first, layer.B), layer.h0);
      if (others > 0) {
        dw_hh += weight_gradient(layer, h_slot, d.narrow(0, rest, others),
                                 h_all.narrow(0, layer.B - rest, others));
      }
    }
    if (layer.b_ih.defined()) bias_sums = d.sum(0, /*keepdim=*/true);
  }
  if (needs[1]) {
    if (layer.b_ih.defined()) {
      db_ih = bias_gradient(layer, x_slot, bias_sums);
      db_hh = bias_gradient(layer, h_slot, bias_sums);
    }
    if (projected) {
      dw_hr = at::empty({layer.P, layer.H}, options);
      transposed_product(dh, m, dw_hr);
    }
  }
  return {dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr};
}

}  // namespace
}  // namespace fastrnn

TORCH_LIBRARY_IMPL(fastrnn, CPU, m) {
  m.impl("forward", fastrnn::forward);
  m.impl("backward", fastrnn::backward);
  m.impl("prepack", fastrnn::prepack);
  m.impl("forward_prepacked", fastrnn::forward_prepacked);
}
