// Kernels that every driver's pass launches outside the recurrence (pass.cu).
#pragma once

#include "cuda/common/elementwise.cuh"
#include "cuda/common/sequence.cuh"

namespace fastrnn::cuda {

// ---- Initial and final states ----

template <class Storage>
struct StateIn {
  int64_t rows, width;
  const Storage* from;      // [rows, width], or null for zero
  StepRows next;            // where this step resets, the state is zero
  Compute<Storage>* state;  // [rows, width]
  Storage* operand;         // [rows, width] the same as products read it, or null
};

template <int N, class Storage>
__global__ void state_in(StateIn<Storage> a) {
  for_each_unit<N>(a.rows, a.width, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.width + u;
    Compute<Storage> value[N];
    fill(value, Compute<Storage>{});
    if (a.from && !a.next.resets(b)) load<N>(a.from + at, value);
    store<N>(a.state + at, value);
    if (a.operand) store<N>(a.operand + at, value);
  });
}

template <class Storage>
struct StateOut {
  int64_t rows, width;
  const Compute<Storage>* state;  // [rows, width]
  const Compute<Storage>* acc;    // [acc_rows, width] to be added, or null
  int64_t acc_rows;
  StepRows after;  // where this step resets, nothing is added
  Storage* to;     // [rows, width]
};

template <int N, class Storage>
__global__ void state_out(StateOut<Storage> a) {
  for_each_unit<N>(a.rows, a.width, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.width + u;
    Compute<Storage> value[N];
    load<N>(a.state + at, value);
    if (a.acc && b < a.acc_rows && !a.after.resets(b)) add(a.acc + at, value);
    store<N>(a.to + at, value);
  });
}

// ---- Over all rows of the sequence ----

template <class Storage>
struct Gather {
  DeviceSequence sequence;
  int64_t first_row, rows, width;
  const Storage* steps;    // [all rows, width] a state after every step
  const Storage* initial;  // [B, width]
  Storage* to;             // [rows, width] the state before each of the rows from first_row on
};

template <int N, class Storage>
__global__ void gather(Gather<Storage> a) {
  for_each_unit<N>(a.rows, a.width, [&](int64_t row, int64_t u) {
    const DeviceSequence::Before from = a.sequence.before(a.first_row + row);
    Compute<Storage> value[N];
    fill(value, Compute<Storage>{});
    if (from.active && !from.zero) {
      const int64_t at = from.previous < 0 ? from.b : from.previous;
      load<N>((from.previous < 0 ? a.initial : a.steps) + at * a.width + u, value);
    }
    store<N>(a.to + row * a.width + u, value);
  });
}

// The slots as forward left them, recomputed from products over all rows.
template <class Storage>
struct Recompute {
  int64_t rows, H;
  const Compute<Storage>* input;      // [rows, G * H]
  const Compute<Storage>* recurrent;  // [rows, G * H]
  const Storage *b_ih, *b_hh;         // [G * H] or null
  const Storage* h_prev;              // [rows, H], or null where the layer projects
  const Storage* c_prev;              // [rows, H] or null
  Storage* slots;                     // [rows, S * H]
};

template <int N, class Cell, class Storage>
__global__ void __launch_bounds__(block_threads) recompute(Recompute<Storage> a) {
  using Number = Compute<Storage>;
  for_each_unit<N>(a.rows, a.H, [&](int64_t row, int64_t u) {
    const int64_t at = row * a.H + u;
    Number s[Cell::slots][N], h[N], c[N];
    pre_activations<N, Cell>(a.input + row * Cell::gates * a.H, a.recurrent + row * Cell::gates * a.H,
                             a.b_ih, a.b_hh, a.H, u, s);
    fill(h, Number{});
    fill(c, Number{});
    if (a.h_prev) load<N>(a.h_prev + at, h);
    if (Cell::has_c) load<N>(a.c_prev + at, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      Number one[Cell::slots], new_h, new_c = 0;
#pragma unroll
      for (int j = 0; j < Cell::slots; ++j) one[j] = s[j][i];
      Cell::forward(one, h[i], c[i], new_h, new_c);
#pragma unroll
      for (int j = 0; j < Cell::slots; ++j) s[j][i] = one[j];
    }
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) store<N>(a.slots + (row * Cell::slots + j) * a.H + u, s[j]);
  });
}

// The cell's output, recomputed from its slots and c, for the gradient of the projection's weights.
template <class Storage>
struct Outputs {
  int64_t rows, H;
  const Storage *slots, *c;  // [rows, S * H], [rows, H]
  Storage* to;               // [rows, H]
};

template <int N, class Cell, class Storage>
__global__ void outputs(Outputs<Storage> a) {
  using Number = Compute<Storage>;
  for_each_unit<N>(a.rows, a.H, [&](int64_t row, int64_t u) {
    Number s[Cell::slots][N], c[N], h[N];
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) load<N>(a.slots + (row * Cell::slots + j) * a.H + u, s[j]);
    load<N>(a.c + row * a.H + u, c);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      Number one[Cell::slots];
#pragma unroll
      for (int j = 0; j < Cell::slots; ++j) one[j] = s[j][i];
      h[i] = Cell::output(one, c[i]);
    }
    store<N>(a.to + row * a.H + u, h);
  });
}

// Numbers from the host, passed as a kernel's argument: a copy would wait, and a CUDA graph would replay it
// from memory that is gone.
struct Upload {
  static constexpr int most = 256;
  int64_t count;
  int64_t* to;
  int64_t values[most];
};

[[maybe_unused]] static __global__ void upload(Upload a) {
  if (threadIdx.x < a.count) a.to[threadIdx.x] = a.values[threadIdx.x];
}

}  // namespace fastrnn::cuda
