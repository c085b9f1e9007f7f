// A stack of packed layers, one direction, whose state is advanced in place.
#include "cpu/passes.h"
#include "cpu/threads/workspace.h"
#include "torch/cpu_ops.h"

namespace fastrnn {
namespace {

// The stack's state: two copies, in turn the one before a call and the one after, of h [layers, B, P] and
// then c [layers, B, K * H] for cells with K private states.
struct StreamState {
  int64_t layers, B, P, H, C;  // C: numbers in the private states of a row

  int64_t numbers() const { return layers * B * (P + C); }
  int64_t h(int64_t turn, int64_t layer) const { return turn * numbers() + layer * B * P; }
  int64_t c(int64_t turn, int64_t layer) const { return turn * numbers() + layers * B * P + layer * B * C; }
};

template <class Kernels>
void run_stack(const Kernels& kernels, const CellInfo& info, CellId id, const Tensor& x,
               const StreamState& s, int64_t turn, const Tensor& state, const std::vector<Tensor>& panels,
               const std::vector<Tensor>& biases, const Tensor& y) {
  using S = typename Kernels::Storage;
  S* const numbers = state.data<S>();
  Workspace workspace;
  S* between[2] = {};  // [T, B, P] what layers hand to the next
  for (int i = 0; i < std::min<int64_t>(s.layers - 1, 2); ++i) between[i] = workspace.take<S>(y.numel());
  ForwardArgs<S> a{};
  a.cell = id;
  a.sequence.T = x.dim() == 3 ? x.size(0) : 1;
  a.sequence.B = s.B;
  a.sequence.rows = a.sequence.T * s.B;
  a.weights.I = x.size(-1);
  a.weights.H = s.H;
  a.weights.P = s.P;
  a.x = x.data<S>();
  a.x_step = x.dim() == 3 ? x.stride(0) : 0;
  a.x_row = x.stride(-2);
  for (int64_t i = 0; i < s.layers; ++i) {
    if (!biases.empty()) {
      a.weights.b_ih = biases[2 * i].data<S>();
      a.weights.b_hh = biases[2 * i + 1].data<S>();
    }
    a.h0 = numbers + s.h(turn, i);
    a.h_n = numbers + s.h(1 - turn, i);
    if (info.has_c) {
      a.c0 = numbers + s.c(turn, i);
      a.c_n = numbers + s.c(1 - turn, i);
    }
    a.y = i + 1 < s.layers ? between[i % 2] : y.data<S>();
    run_forward(a, kernels, panels[i].data<void>());
    a.x = a.y;
    a.x_step = s.B * s.P;
    a.x_row = a.weights.I = s.P;
  }
}

}  // namespace

Tensor stream(std::string_view cell, const Tensor& given, const Tensor& state, int64_t turn,
              const std::vector<Tensor>& panels, const std::vector<Tensor>& biases, int64_t hidden_size,
              int64_t size, std::string_view weights, int64_t precision) {
  const CellId id = find_cell(cell);
  const CellInfo& info = cell_info(id);
  FASTRNN_CHECK_VALUE((given.dim() == 2 || given.dim() == 3) && given.size(0) > 0,
                      "fastrnn: the input must be [B, I] or [T, B, I] with at least one step, got ",
                      given.sizes());
  const StreamState s{static_cast<int64_t>(panels.size()), given.size(-2), size, hidden_size,
                      info.own_states * hidden_size};
  FASTRNN_CHECK_VALUE(info.unit_weights + info.step_inputs == 0, "fastrnn: ", info.name,
                      " has weights or inputs of its units, which streams don't take");
  FASTRNN_CHECK_VALUE(
      state.is_contiguous() && state.numel() == 2 * s.numbers() && state.dtype() == given.dtype(),
      "fastrnn: the state must be 2 * ", s.numbers(), " numbers of ", given.dtype(), ", got ",
      state.numel(), " of ", state.dtype());
  FASTRNN_CHECK_VALUE(
      (turn == 0 || turn == 1) && !panels.empty() && (biases.empty() || biases.size() == 2 * panels.size()),
      "fastrnn: turn must be 0 or 1, and biases two for each layer or none");
  const AnyKernels kernels = choose_kernels(given.dtype(), find_packing(weights, given.dtype()),
                                            static_cast<Precision>(precision), /*may_split=*/false);
  LayerTensors sizes;
  sizes.cell = &info;
  sizes.H = s.H;
  sizes.P = s.P;
  for (int64_t i = 0; i < s.layers; ++i) {
    sizes.I = i == 0 ? given.size(-1) : s.P;
    check_panels(sizes, kernels, panels[i]);
  }
  for (const Tensor& b : biases) {
    FASTRNN_CHECK_VALUE(
        b.has_sizes(Sizes{info.gates * s.H}) && b.dtype() == given.dtype() && b.is_contiguous(),
        "fastrnn: biases must be contiguous, of shape [", info.gates * s.H, "] and the input's dtype");
  }
  const Tensor x = given.stride(-1) == 1 || given.size(-1) == 1 ? given.borrow() : given.contiguous();
  Tensor y = empty(Sizes(x.sizes().first(x.dim() - 1)).with(s.P), x.dtype(), x.device());
  with_kernels(kernels, [&](const auto& table) {
    run_stack(table, info, id, x, s, turn, state, panels, biases, y);
  });
  return y;
}

}  // namespace fastrnn
