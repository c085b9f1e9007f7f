// Backward on the CPU. The kernels form every gradient in one pass if all is of one type; otherwise they
// return the gradients of the pre-activations, and torch's products make the rest.
#include <cmath>
#include <cstring>

#include "cpu/passes.h"
#include "cpu/threads/torch_threads.h"
#include "torch/cpu_ops.h"
#include "torch/pointers.h"

namespace fastrnn {
namespace {

// One call of backward.
struct Call {
  LayerTensors& layer;
  const Sequence& sequence;
  const AnyKernels kernels;
  const Precision precision;
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
  const int64_t n = initial.size(1), bytes = n * bytes_of(states.dtype());
  Tensor out = empty({q.rows, n}, states.dtype(), states.device());
  const char* from = states.data<char>();
  const char* start = initial.data<char>();
  char* to = out.data<char>();
  parallel_for(q.T, [&](Range steps) {
    for (int64_t k : each(steps)) {
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

// x [T, B, I] or [rows, I] as [rows, I].
Tensor as_rows(const Tensor& x) {
  if (x.dim() == 2) return x.borrow();
  const bool evenly_spaced = x.size(0) == 1 || x.size(1) == 1 || x.stride(0) == x.size(1) * x.stride(1);
  return evenly_spaced ? x.flatten_steps() : x.contiguous().flatten_steps();
}

// The slots that forward did not keep, [rows, S * H]. With every state known the steps are independent:
// one step of as many sequences as there are rows, some rows at a time.
Tensor recompute_slots(const Call& call, const Tensor& h_prev, const Tensor& c_prev) {
  const LayerTensors& layer = call.layer;
  constexpr int64_t rows_at_once = 1536;
  const int64_t width = layer.cell->slots * layer.H;
  Tensor slots = empty({layer.rows, width}, layer.x.dtype(), layer.x.device());
  const Tensor x = as_rows(layer.x);
  const Tensor inputs = layer.step_inputs.defined() ? as_rows(layer.step_inputs) : Tensor();
  for (int64_t row = 0; row < layer.rows; row += rows_at_once) {
    const int64_t count = std::min(rows_at_once, layer.rows - row);
    LayerTensors part = layer.with_same_weights();
    part.x = x.narrow(0, row, count);
    part.h0 = h_prev.narrow(0, row, count);
    if (c_prev.defined()) part.c0 = c_prev.narrow(0, row, count);
    if (inputs.defined()) part.step_inputs = inputs.narrow(0, row, count);
    part.T = 1;
    part.B = part.rows = count;
    part.leading = {count};
    ForwardResults out = allocate_results(part, keep_nothing);
    out.slots = slots.narrow(0, row, count);
    const OwnedSequence sequence(part, false);
    const AnyKernels kernels =
        choose_kernels(x.dtype(), Packing::own, call.precision, split_pays(sequence));
    run_forward(part, sequence, kernels, nullptr, out);
  }
  return slots;
}

// out = a [n, m] b [m, k]; in float32 for float16, which has no fast product.
void product(const Tensor& a, const Tensor& b, Tensor out) {
  if (a.dtype() != Dtype::float16) {
    mm_out(out, a, b);
  } else {
    copy_to(out, mm(a.to(Dtype::float32), b.to(Dtype::float32)));
  }
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
    product(columns.transpose(), inputs, out.narrow(0, gate * layer.H, count * layer.H));
  });
}

// The columns of d in the order of the gates, [rows, G * H].
Tensor gate_columns(const LayerTensors& layer, const int* slots, const Tensor& d) {
  const int gates = layer.cell->gates;
  Tensor gathered;
  for_slot_runs(layer, slots, d, [&](int gate, int count, const Tensor& columns) {
    if (count == gates) {
      gathered = d.narrow(1, slots[0] * layer.H, gates * layer.H);
      return;
    }
    if (!gathered.defined()) gathered = empty({layer.rows, gates * layer.H}, d.dtype(), d.device());
    Tensor part = gathered.narrow(1, gate * layer.H, count * layer.H);
    copy_to(part, columns);
  });
  return gathered;
}

void input_gradient(Call& call) {
  const LayerTensors& layer = call.layer;
  product(gate_columns(layer, layer.cell->x_slot, call.d), layer.w_ih,
          call.out.dx.view({layer.rows, layer.I}));
}

void bias_gradients(Call& call) {
  if (!call.layer.b_ih.defined()) return;
  const Tensor sums = sum_rows(call.d);  // [1, S * H]
  const auto write = [&](const int* slots, const Tensor& out) {
    const int64_t H = call.layer.H;
    for_slot_runs(call.layer, slots, sums, [&](int gate, int count, const Tensor& columns) {
      Tensor part = out.narrow(0, gate * H, count * H);
      copy_to(part, columns.contiguous().view({count * H}));
    });
  };
  write(call.layer.cell->x_slot, call.out.db_ih);
  write(call.layer.cell->h_slot, call.out.db_hh);
}

// x beyond a sequence's end was multiplied by zero, which gives NaN if x is not finite there. To look for
// that in the result costs less than to copy x without its padding every time.
bool met_padding(const Call& call) {
  return call.layer.lengths.defined() && !std::isfinite(sum(call.out.dw_ih));
}

// x with zeros beyond each sequence's end, for products over all rows: the gradient there is zero, but zero
// times NaN or infinity, which padding may hold, is NaN.
Tensor without_padding(const LayerTensors& layer) {
  if (!layer.lengths.defined()) return layer.x.borrow();
  Tensor x = empty(Sizes(layer.x.sizes()), layer.x.dtype(), layer.x.device());
  copy_to(x, layer.x);
  const int64_t* lengths = layer.lengths.data<int64_t>();
  const int64_t bytes = layer.I * bytes_of(x.dtype());
  for (int64_t t = 0; t < layer.T; ++t) {
    for (int64_t b = 0; b < layer.B; ++b) {
      if (t >= lengths[b]) memset(x.data<char>() + (t * layer.B + b) * bytes, 0, bytes);
    }
  }
  return x;
}

// Allocates what the kernels write besides the results, and makes what they read.
void prepare(Call& call, bool kernels_form) {
  const LayerTensors& layer = call.layer;
  const CellInfo& info = *layer.cell;
  const bool projected = layer.w_hr.defined();
  const auto make = [&](const Sizes& sizes) { return empty(sizes, layer.x.dtype(), layer.x.device()); };
  const bool recompute = info.keeps_slots && !call.in.slots.defined() && layer.rows > 0;
  const bool one_step = call.sequence.plain() && layer.T == 1;
  if (recompute || (call.needs_weights && !kernels_form)) {
    call.h_prev = one_step ? layer.h0.borrow() : previous_states(call.sequence, call.in.y, layer.h0);
  }
  if (recompute) {
    const Tensor c_prev = info.has_c ? previous_states(call.sequence, call.in.c, layer.c0) : Tensor();
    call.in.slots = recompute_slots(call, call.h_prev, c_prev);
  }
  if (!kernels_form) {
    // The recomputed slots are this call's own: reuse their memory for the gradients.
    call.d = recompute ? call.in.slots.borrow() : make({layer.rows, info.slots * layer.H});
  }
  if (projected) {
    call.dh = make({layer.rows, layer.P});
    if (call.needs_weights) call.output = make({layer.rows, layer.H});
  }
}

void run(Call& call) {
  with_kernels(call.kernels, [&](const auto& table) {
    using K = std::remove_cvref_t<decltype(table)>;
    using S = typename K::Storage;
    if constexpr (!K::quantizes) {
      const ProductFactors<S> factors{call.d.template data<S>(), call.dh.template data<S>(),
                                      call.output.template data<S>()};
      run_backward(backward_args<S>(call.layer, call.sequence, call.in, call.out), factors, table);
    }
  });
}

void torch_products(Call& call) {
  if (call.needs_x) input_gradient(call);
  if (!call.needs_weights) return;
  const auto by_x = [&](const Tensor& x) {
    weight_gradient(call.layer, call.layer.cell->x_slot, call.d, as_rows(x), call.out.dw_ih);
  };
  by_x(call.layer.x);
  if (met_padding(call)) by_x(without_padding(call.layer));
  weight_gradient(call.layer, call.layer.cell->h_slot, call.d, call.h_prev, call.out.dw_hh);
  bias_gradients(call);
}

}  // namespace

BackwardTuple backward(std::string_view cell, const OptionalTensor& dy, const OptionalTensor& dh_n,
                       const OptionalTensor& dc_n, const OptionalTensor& dc, const Tensor& x,
                       const Tensor& h0, const OptionalTensor& c0, const Tensor& w_ih, const Tensor& w_hh,
                       const OptionalTensor& b_ih, const OptionalTensor& b_hh, const OptionalTensor& w_hr,
                       const OptionalTensor& batch_sizes, const OptionalTensor& lengths,
                       const OptionalTensor& reset, bool reverse, const Tensor& y, const Tensor& c,
                       const Tensor& slots, std::array<bool, 2> needs, int64_t precision_,
                       const OptionalTensor& unit_weights, const OptionalTensor& step_inputs) {
  const auto precision = static_cast<Precision>(precision_);
  const NoGrad derivatives_are_taken_by_autograd_py;
  LayerTensors layer =
      check_layer(cell, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, batch_sizes, lengths, reset);
  check_given(layer, unit_weights, step_inputs);
  const OwnedSequence sequence(layer, reverse);
  Call call{layer,
            sequence,
            choose_kernels(x.dtype(), Packing::own, precision, split_pays(sequence)),
            precision,
            check_backward(layer, dy, dh_n, dc_n, dc, y, c, slots),
            {},
            needs[0],
            needs[1]};
  const bool kernels_form = (needs[0] || needs[1]) && kernels_form_products(layer, call.kernels);
  call.out = allocate_gradients(layer, needs[0], needs[1]);
  prepare(call, kernels_form);
  run(call);
  if (!kernels_form) {
    torch_products(call);
  } else if (needs[1] && met_padding(call)) {
    layer.x = without_padding(layer);
    run(call);
  }
  if (needs[1] && layer.w_hr.defined()) product(call.dh.transpose(), call.output, call.out.dw_hr.borrow());
  return as_tuple(std::move(call.out));
}

}  // namespace fastrnn
