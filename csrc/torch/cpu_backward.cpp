// Backward on the CPU. The kernels form every gradient in one pass if all is of one type; otherwise they
// return the gradients of the pre-activations, and torch's products make the rest.
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <cstring>

#include "cpu/passes.h"
#include "torch/cpu_ops.h"
#include "torch/pointers.h"

namespace fastrnn {
namespace {

using at::Tensor;

// One call of backward.
struct Call {
  LayerTensors& layer;
  const Sequence& sequence;
  const AnyKernels kernels;
  BackwardInputs in;
  LayerGradients out;
  bool needs_x, needs_weights;
  // The factors of products that the kernels leave to torch; undefined if not needed.
  Tensor d{}, dh{}, output{};
  Tensor h_prev{};  // [rows, P] the state before each step, if it had to be made
};

// Whether the kernels form the gradients of weights and input, for which they need no rows of the factors
// beyond a chunk. They do if all is of one type, and rows and columns fill whole tiles.
bool kernels_form_products(const LayerTensors& layer, const AnyKernels& kernels) {
  constexpr int64_t few = 64;
  return layer.rows >= few && layer.I <= 16 * layer.H && with_kernels(kernels, [](const auto& table) {
           return std::remove_cvref_t<decltype(table)>::one_type;
         });
}

// [rows, n] the state before each step: `states` [rows, n] of every step, one step later. Zero once a
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
// one step of as many sequences as there are rows, some rows at a time.
Tensor recompute_slots(const LayerTensors& layer, const Tensor& h_prev, const Tensor& c_prev) {
  constexpr int64_t rows_at_once = 1536;
  const int64_t width = layer.cell->slots * layer.H;
  Tensor slots = at::empty({layer.rows, width}, layer.x.options());
  const Tensor x = layer.x.reshape({layer.rows, layer.I});
  for (int64_t row = 0; row < layer.rows; row += rows_at_once) {
    const int64_t count = std::min(rows_at_once, layer.rows - row);
    LayerTensors part = layer;
    part.x = x.narrow(0, row, count);
    part.h0 = h_prev.narrow(0, row, count);
    if (c_prev.defined()) part.c0 = c_prev.narrow(0, row, count);
    part.batch_sizes = part.lengths = part.reset = Tensor();
    part.T = 1;
    part.B = part.rows = count;
    part.leading = {count};
    ForwardResults out = allocate_results(part, keep_nothing);
    out.slots = slots.narrow(0, row, count);
    const OwnedSequence sequence(part, false);
    const AnyKernels kernels = choose_kernels(x.scalar_type(), Packing::own, split_pays(sequence));
    run_forward(part, sequence, kernels, nullptr, out);
  }
  return slots;
}

// out = a [n, m]' b [n, k]; in float32 for float16, which has no fast product.
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

// Calls body(first gate, number of gates, columns of d [rows, n * H]) for each run of gates in consecutive
// slots, which is one operand.
template <class Body>
void for_slot_runs(const LayerTensors& layer, const int* slots, const Tensor& d, Body body) {
  const int gates = layer.cell->gates;
  for (int g = 0; g < gates;) {
    int end = g + 1;
    while (end < gates && slots[end] == slots[end - 1] + 1) ++end;
    body(g, end - g, d.narrow(1, slots[g] * layer.H, (end - g) * layer.H));
    g = end;
  }
}

// out [G * H, n], the gradient of a weight matrix: d' inputs, gate by gate.
void weight_gradient(const LayerTensors& layer, const int* slots, const Tensor& d, const Tensor& inputs,
                     const Tensor& out) {
  for_slot_runs(layer, slots, d, [&](int gate, int count, const Tensor& columns) {
    transposed_product(columns, inputs, out.narrow(0, gate * layer.H, count * layer.H));
  });
}

void input_gradient(Call& call) {
  const LayerTensors& layer = call.layer;
  Tensor dx;
  for_slot_runs(layer, layer.cell->x_slot, call.d, [&](int gate, int count, const Tensor& columns) {
    const Tensor part = product(columns, layer.w_ih.narrow(0, gate * layer.H, count * layer.H));
    dx = gate == 0 ? part : dx + part;
  });
  call.out.dx = dx.view(layer.sizes(layer.I));
}

void recurrent_gradient(Call& call) {
  const LayerTensors& layer = call.layer;
  const int* slots = layer.cell->h_slot;
  if (call.h_prev.defined()) return weight_gradient(layer, slots, call.d, call.h_prev, call.out.dw_hh);
  // The state before each step is the output one step earlier, so that nothing need be copied.
  const int64_t others = layer.rows - layer.B;
  const int64_t first = call.sequence.reverse ? others : 0, rest = call.sequence.reverse ? 0 : layer.B;
  weight_gradient(layer, slots, call.d.narrow(0, first, layer.B), layer.h0, call.out.dw_hh);
  if (others == 0) return;
  const Tensor more = at::empty_like(call.out.dw_hh);
  weight_gradient(layer, slots, call.d.narrow(0, rest, others), call.in.y.narrow(0, layer.B - rest, others),
                  more);
  call.out.dw_hh += more;
}

void bias_gradients(Call& call) {
  if (!call.layer.b_ih.defined()) return;
  const Tensor sums = call.d.sum(0);
  const auto write = [&](const int* slots, const Tensor& out) {
    const int64_t H = call.layer.H;
    for_slot_runs(call.layer, slots, sums.unsqueeze(0), [&](int gate, int count, const Tensor& columns) {
      out.narrow(0, gate * H, count * H).copy_(columns.squeeze(0));
    });
  };
  write(call.layer.cell->x_slot, call.out.db_ih);
  write(call.layer.cell->h_slot, call.out.db_hh);
}

// x beyond a sequence's end was multiplied by zero, which gives NaN if x is not finite there. To look for
// that in the result costs less than to copy x without its padding every time.
bool met_padding(const Call& call) {
  return call.layer.lengths.defined() && !call.out.dw_ih.sum().isfinite().item<bool>();
}

// Allocates what the kernels write besides the results, and makes what they read.
void prepare(Call& call, bool kernels_form) {
  const LayerTensors& layer = call.layer;
  const CellInfo& info = *layer.cell;
  const bool projected = layer.w_hr.defined();
  const bool recompute = info.keeps_slots && !call.in.slots.defined() && layer.rows > 0;
  const bool shifted_y = call.sequence.plain() && layer.T > 0;
  if (recompute || (call.needs_weights && !kernels_form && !shifted_y)) {
    call.h_prev = previous_states(call.sequence, call.in.y, layer.h0);
  }
  if (recompute) {
    const Tensor c_prev = info.has_c ? previous_states(call.sequence, call.in.c, layer.c0) : Tensor();
    call.in.slots = recompute_slots(layer, call.h_prev, c_prev);
  }
  if (!kernels_form) {
    // The recomputed slots are this call's own: reuse their memory for the gradients.
    call.d = recompute ? call.in.slots : at::empty({layer.rows, info.slots * layer.H}, layer.x.options());
  }
  if (projected) {
    call.dh = at::empty({layer.rows, layer.P}, layer.x.options());
    if (call.needs_weights) call.output = at::empty({layer.rows, layer.H}, layer.x.options());
  }
}

void run(Call& call) {
  with_kernels(call.kernels, [&](const auto& table) {
    using K = std::remove_cvref_t<decltype(table)>;
    using S = typename K::Storage;
    if constexpr (std::is_same_v<typename K::Panel, typename K::Operand>) {
      const ProductFactors<S> factors{data<S>(call.d), data<S>(call.dh), data<S>(call.output)};
      run_backward(backward_args<S>(call.layer, call.sequence, call.in, call.out), factors, table);
    }
  });
}

void torch_products(Call& call) {
  if (call.needs_x) input_gradient(call);
  if (!call.needs_weights) return;
  const auto by_x = [&](const Tensor& x) {
    weight_gradient(call.layer, call.layer.cell->x_slot, call.d, x.reshape({call.layer.rows, call.layer.I}),
                    call.out.dw_ih);
  };
  by_x(call.layer.x);
  if (met_padding(call)) by_x(without_padding(call.layer));
  recurrent_gradient(call);
  bias_gradients(call);
}

}  // namespace

BackwardTuple backward(std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const OptionalTensor& dc, const Tensor& x,
                       const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c,
                       const Tensor& slots, std::array<bool, 2> needs) {
  // Derivatives of this op are taken by autograd.py.
  const at::AutoDispatchBelowADInplaceOrView no_gradients_of_gradients;
  LayerTensors layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  const OwnedSequence sequence(layer, reverse);
  Call call{layer,
            sequence,
            choose_kernels(x.scalar_type(), Packing::own, split_pays(sequence)),
            check_backward(layer, dy, dh_n, dc_n, dc, y, c, slots),
            {},
            needs[0],
            needs[1]};
  const bool kernels_form = (needs[0] || needs[1]) && kernels_form_products(layer, call.kernels);
  call.out = allocate_gradients(layer, needs[0] && kernels_form, needs[1]);
  prepare(call, kernels_form);
  run(call);
  if (!kernels_form) {
    torch_products(call);
  } else if (needs[1] && met_padding(call)) {
    layer.x = without_padding(layer);
    run(call);
  }
  if (needs[1] && layer.w_hr.defined()) transposed_product(call.dh, call.output, call.out.dw_hr);
  return as_tuple(call.out);
}

}  // namespace fastrnn
