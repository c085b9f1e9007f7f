// Kernels of the step driver: a cell's equations over the units of one step's rows, the states'
// way in and out, and reductions over the whole sequence. Matrix products are not here.
#pragma once

#include "cells/cell_info.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/numbers.cuh"
#include "layer/args.h"

namespace fastrnn::cuda {

// Rows of one step, and which of them take part. No row takes part in a step that does not exist
// (batch = 0).
struct StepRows {
  int64_t t, batch;        // the step, and how many rows it has
  const int64_t* lengths;  // [B] or null
  const uint8_t* reset;    // [batch] of this step's rows, or null

  __device__ bool active(int64_t b) const { return b < batch && (!lengths || t < lengths[b]); }
  __device__ bool resets(int64_t b) const { return reset && active(b) && reset[b]; }
};

// The sequence as kernels over all rows see it.
struct DeviceSequence {
  int64_t T, B;
  const int64_t* first;    // [T + 1] on the device, or null
  const int64_t* lengths;  // [B] or null
  const uint8_t* reset;    // [rows] or null
  bool reverse;

  // The state before row `row` is that of row `previous`, or the initial one of sequence `b`, or zero.
  struct Before {
    int64_t b, previous;  // previous < 0: the initial state
    bool active, zero;
  };

  __device__ Before before(int64_t row) const {
    int64_t t = row / B;
    if (first) {  // the last t whose first row is not beyond this one
      int64_t low = 0, high = T;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (first[middle] <= row ? low : high) = middle;
      }
      t = low;
    }
    const int64_t b = row - (first ? first[t] : t * B);
    const int64_t end = lengths && lengths[b] < T ? lengths[b] : T;
    const int64_t other = reverse ? t + 1 : t - 1;
    bool initial = other < 0 || other >= end;
    int64_t previous = -1;
    if (!initial && first) initial = b >= first[other + 1] - first[other];
    if (!initial) previous = (first ? first[other] : other * B) + b;
    return {b, previous, t < end, reset && reset[row]};
  }
};

// Where the gradient of each slot is kept, in columns of H: those that only the input's product has a
// part in first, then those of both, then those of the recurrent product alone, so that either
// product's are next to each other. GRU: the candidate's input part, r, z, the candidate's recurrent.
template <class Cell>
struct Columns {
  int of_slot[Cell::slots] = {};
  int x_gate[Cell::gates] = {};  // gate of column i of the input's product, which starts at 0
  int h_start = 0;               // first column of the recurrent product,
  bool h_in_order = true;        // and whether its columns are the gates in order
  int x_slot[Cell::gates] = {}, h_slot[Cell::gates] = {};

  constexpr Columns() {
    bool by_x[Cell::slots] = {}, by_h[Cell::slots] = {};
    for (int g = 0; g < Cell::gates; ++g) {
      x_slot[g] = Cell::x_slot[g];
      h_slot[g] = Cell::h_slot[g];
      by_x[x_slot[g]] = by_h[h_slot[g]] = true;
    }
    int next = 0;
    const bool wants_x[] = {true, true, false}, wants_h[] = {false, true, true};
    for (int pass = 0; pass < 3; ++pass) {
      if (pass == 1) h_start = next;
      for (int i = 0; i < Cell::slots; ++i) {
        if (by_x[i] == wants_x[pass] && by_h[i] == wants_h[pass]) of_slot[i] = next++;
      }
    }
    for (int g = 0; g < Cell::gates; ++g) {
      x_gate[of_slot[x_slot[g]]] = g;
      if (of_slot[h_slot[g]] != h_start + g) h_in_order = false;
    }
  }
};

// Calls body(row, u) for every row and every N-th unit, spread over the grid.
template <int N, class Body>
__device__ __forceinline__ void for_each_unit(int64_t rows, int64_t units, Body body) {
  const int64_t u = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * N;
  if (u >= units) return;
  const int64_t stride = int64_t{gridDim.y} * blockDim.y;
  for (int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y; row < rows; row += stride) {
    body(row, u);
  }
}

constexpr int block_threads = 128;

// The grid that for_each_unit wants.
inline Shape spread(int64_t rows, int64_t units, int width) {
  const int64_t columns = (units + width - 1) / width;
  unsigned x = 1;
  while (x < columns && x < block_threads) x *= 2;
  const unsigned y = block_threads / x;
  const int64_t most_y = 65535;
  const int64_t blocks_y = (rows + y - 1) / y;
  return {{static_cast<unsigned>((columns + x - 1) / x),
           static_cast<unsigned>(blocks_y < most_y ? blocks_y : most_y), 1},
          {x, y, 1}};
}

template <int N, class Number>
__device__ __forceinline__ void fill(Number (&to)[N], Number value) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = value;
}

template <int N, class Storage>
__device__ __forceinline__ void add(const Storage* from, Compute<Storage> (&to)[N]) {
  Compute<Storage> more[N];
  load<N>(from, more);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] += more[i];
}

// Pre-activations of every slot at a unit, from both products and both biases ([G * H] each).
template <int N, class Cell, class Storage>
__device__ __forceinline__ void pre_activations(const Compute<Storage>* input,
                                                const Compute<Storage>* recurrent, const Storage* b_ih,
                                                const Storage* b_hh, int64_t H, int64_t u,
                                                Compute<Storage> (&s)[Cell::slots][N]) {
  constexpr Columns<Cell> columns;
#pragma unroll
  for (int i = 0; i < Cell::slots; ++i) fill(s[i], Compute<Storage>{});
#pragma unroll
  for (int g = 0; g < Cell::gates; ++g) {
    add(input + g * H + u, s[columns.x_slot[g]]);
    if (b_ih) add(b_ih + g * H + u, s[columns.x_slot[g]]);
    add(recurrent + g * H + u, s[columns.h_slot[g]]);
    if (b_hh) add(b_hh + g * H + u, s[columns.h_slot[g]]);
  }
}

// ---- States on their way in and out ----

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

// ---- One step forward ----

// Where a new h goes.
template <class Storage>
struct NewH {
  Compute<Storage>* state;  // [B, P]
  Storage* operand;         // [B, P] as the next step's product reads it, or null
  Storage* y;               // [now.batch, P] of this step
};

template <class Storage>
struct CellForward {
  int64_t rows, H;  // rows of this step and the next
  StepRows now, next;
  const Compute<Storage>* input;      // [now.batch, G * H]
  const Compute<Storage>* recurrent;  // [now.batch, G * H]
  const Storage *b_ih, *b_hh;         // [G * H] or null
  NewH<Storage> h;                    // null where a projection follows
  Storage* projected;                 // [now.batch, H] the cell's output, where one follows
  Compute<Storage>* c;                // [B, H]
  Storage* c_out;                     // [now.batch, H] or null
  Storage* slots;                     // [now.batch, S * H] or null
};

// The new h of a row of units, and how it is left for the next step.
template <int N, class Storage>
__device__ __forceinline__ void put_h(const NewH<Storage>& to, int64_t at, bool exists, bool active,
                                      bool resets_next, Compute<Storage> (&h)[N]) {
  Compute<Storage> y[N];
#pragma unroll
  for (int i = 0; i < N; ++i) y[i] = active ? h[i] : Compute<Storage>{};
  if (exists) store<N>(to.y + at, y);
  if (resets_next) fill(h, Compute<Storage>{});
  if (!active && !resets_next) return;
  store<N>(to.state + at, h);
  if (to.operand) store<N>(to.operand + at, h);
}

template <int N, class Cell, class Storage>
__global__ void __launch_bounds__(block_threads) cell_forward(CellForward<Storage> a) {
  using Number = Compute<Storage>;
  for_each_unit<N>(a.rows, a.H, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.H + u;
    const bool exists = b < a.now.batch, active = a.now.active(b), resets_next = a.next.resets(b);
    Number s[Cell::slots][N], h[N], c[N];
#pragma unroll
    for (int i = 0; i < Cell::slots; ++i) fill(s[i], Number{});
    fill(h, Number{});
    fill(c, Number{});
    if (active) {
      pre_activations<N, Cell>(a.input + b * Cell::gates * a.H, a.recurrent + b * Cell::gates * a.H, a.b_ih,
                               a.b_hh, a.H, u, s);
      if (!a.projected) load<N>(a.h.state + at, h);
      if (Cell::has_c) load<N>(a.c + at, c);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        Number one[Cell::slots], new_h, new_c = 0;
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) one[j] = s[j][i];
        Cell::forward(one, h[i], c[i], new_h, new_c);
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) s[j][i] = one[j];
        h[i] = new_h;
        c[i] = new_c;
      }
    }
    if (exists) {
      if (Cell::has_c && a.c_out) store<N>(a.c_out + at, c);
      if (Cell::keeps_slots && a.slots) {
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) {
          store<N>(a.slots + (b * Cell::slots + j) * a.H + u, s[j]);
        }
      }
    }
    if (Cell::has_c && (active || resets_next)) {
      if (resets_next) fill(c, Number{});
      store<N>(a.c + at, c);
    }
    if (!a.projected) {
      put_h<N>(a.h, at, exists, active, resets_next, h);
    } else if (exists) {
      store<N>(a.projected + at, h);
    }
  });
}

// h of a layer with a projection, from its product.
template <class Storage>
struct ProjectedForward {
  int64_t rows, P;
  StepRows now, next;
  const Compute<Storage>* acc;  // [now.batch, P]
  NewH<Storage> h;
};

template <int N, class Storage>
__global__ void projected_forward(ProjectedForward<Storage> a) {
  for_each_unit<N>(a.rows, a.P, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.P + u;
    const bool active = a.now.active(b);
    Compute<Storage> h[N];
    fill(h, Compute<Storage>{});
    if (active) load<N>(a.acc + at, h);
    put_h<N>(a.h, at, b < a.now.batch, active, a.next.resets(b), h);
  });
}

// ---- One step backward ----

// What is known of the gradient of h after a step.
template <class Storage>
struct IncomingH {
  const Compute<Storage>* acc;  // [acc_rows, P] from the recurrent product of the step `after`
  int64_t acc_rows;
  StepRows after;           // where it resets, nothing comes from it
  Compute<Storage>* carry;  // [B, P] in: the rest; out: the same for the state before
  const Storage* dy;        // [now.batch, P] of this step, or null
};

// Sums it for a row of units; the carry is updated here for rows that are not active.
template <int N, class Storage>
__device__ __forceinline__ void incoming(const IncomingH<Storage>& from, int64_t b, int64_t at, bool active,
                                         Compute<Storage> (&dh)[N]) {
  load<N>(from.carry + at, dh);
  if (b < from.acc_rows && !from.after.resets(b)) add(from.acc + at, dh);
  if (!active) {
    store<N>(from.carry + at, dh);
  } else if (from.dy) {
    add(from.dy + at, dh);
  }
}

template <class Storage>
struct CellBackward {
  int64_t rows, H;                         // rows of this step and the one computed after it
  StepRows now, previous;                  // previous in the order of computation
  IncomingH<Storage> h;                    // unused where the layer projects
  const Compute<Storage>* projected;       // [now.batch, H] gradient of the cell's output, where it does
  Compute<Storage>* carry_c;               // [B, H]
  const Storage* dc;                       // [now.batch, H] or null
  const Storage* slots;                    // [now.batch, S * H] or null
  const Storage* y;                        // [now.batch, H]
  const Storage* c;                        // [now.batch, H]
  const Storage *previous_y, *previous_c;  // [previous.batch, H]
  const Storage *h0, *c0;                  // [B, H]
  Storage* d;                              // [now.batch, S * H] by Columns; may be `slots`
};

template <int N, class Cell, class Storage>
__global__ void __launch_bounds__(block_threads) cell_backward(CellBackward<Storage> a) {
  using Number = Compute<Storage>;
  constexpr Columns<Cell> columns;
  for_each_unit<N>(a.rows, a.H, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.H + u;
    const bool active = a.now.active(b);
    Number dh[N];
    if (a.projected) {
      fill(dh, Number{});
      if (active) load<N>(a.projected + at, dh);
    } else {
      incoming<N>(a.h, b, at, active, dh);
    }
    if (b >= a.now.batch) return;
    Number d[Cell::slots][N];
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) fill(d[j], Number{});
    if (active) {
      Number s[Cell::slots][N], h[N], h_prev[N], c[N], c_prev[N], dc[N];
#pragma unroll
      for (int j = 0; j < Cell::slots; ++j) {
        fill(s[j], Number{});
        if (Cell::keeps_slots) load<N>(a.slots + (b * Cell::slots + j) * a.H + u, s[j]);
      }
      const bool resets = a.now.resets(b), initial = !a.previous.active(b);
      fill(h, Number{});
      fill(h_prev, Number{});
      fill(c, Number{});
      fill(c_prev, Number{});
      fill(dc, Number{});
      if (!a.projected) {
        load<N>(a.y + at, h);
        if (!resets) load<N>((initial ? a.h0 : a.previous_y) + at, h_prev);
      }
      if (Cell::has_c) {
        load<N>(a.c + at, c);
        if (!resets) load<N>((initial ? a.c0 : a.previous_c) + at, c_prev);
        load<N>(a.carry_c + at, dc);
        if (a.dc) add(a.dc + at, dc);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        Number one[Cell::slots], d_one[Cell::slots], dh_prev, dc_prev = 0;
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) one[j] = s[j][i];
        Cell::backward(one, h[i], h_prev[i], c[i], c_prev[i], dh[i], dc[i], d_one, dh_prev, dc_prev);
#pragma unroll
        for (int j = 0; j < Cell::slots; ++j) d[j][i] = d_one[j];
        dh[i] = resets ? Number{} : dh_prev;
        dc[i] = resets ? Number{} : dc_prev;
      }
      if (!a.projected) store<N>(a.h.carry + at, dh);
      if (Cell::has_c) store<N>(a.carry_c + at, dc);
    }
#pragma unroll
    for (int j = 0; j < Cell::slots; ++j) {
      store<N>(a.d + (b * Cell::slots + columns.of_slot[j]) * a.H + u, d[j]);
    }
  });
}

// Gradient of a projected h, on its way to the product with w_hr.
template <class Storage>
struct ProjectedBackward {
  int64_t rows, P;
  StepRows now;
  IncomingH<Storage> h;
  Storage* dh;  // [now.batch, P]
};

template <int N, class Storage>
__global__ void projected_backward(ProjectedBackward<Storage> a) {
  for_each_unit<N>(a.rows, a.P, [&](int64_t b, int64_t u) {
    const int64_t at = b * a.P + u;
    const bool active = a.now.active(b);
    Compute<Storage> dh[N], zero[N];
    incoming<N>(a.h, b, at, active, dh);
    fill(zero, Compute<Storage>{});
    if (active) store<N>(a.h.carry + at, zero);
    if (b < a.now.batch) {
      if (!active) fill(dh, Compute<Storage>{});
      store<N>(a.dh + at, dh);
    }
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

// What forward left in the slots, again, from whole products.
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

// The cell's output again, from its slots and c, for the gradient of the projection's weights.
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

// Sums of columns in two passes, in an order that depends on the sizes alone.
constexpr int sum_columns = 32, sum_lines = 8;

template <class Storage>
struct SumRows {
  int64_t rows, columns, rows_a_part;
  const Storage* from;        // [rows, columns]
  Compute<Storage>* partial;  // [parts, columns]
};

template <class Storage>
__global__ void sum_rows(SumRows<Storage> a) {
  using Number = Compute<Storage>;
  Number* lines = reinterpret_cast<Number*>(shared_memory());  // [sum_lines][sum_columns]
  const int x = threadIdx.x, y = threadIdx.y;
  const int64_t column = int64_t{blockIdx.x} * sum_columns + x;
  const int64_t begin = int64_t{blockIdx.y} * a.rows_a_part;
  const int64_t end = begin + a.rows_a_part < a.rows ? begin + a.rows_a_part : a.rows;
  Number sum{};
  if (column < a.columns) {
    for (int64_t row = begin + y; row < end; row += sum_lines) {
      sum += widen(a.from[row * a.columns + column]);
    }
  }
  lines[y * sum_columns + x] = sum;
  sync_block();
  if (y != 0 || column >= a.columns) return;
  for (int line = 1; line < sum_lines; ++line) sum += lines[line * sum_columns + x];
  a.partial[blockIdx.y * a.columns + column] = sum;
}

template <class Storage>
struct BiasGradients {
  int64_t parts, H;
  const Compute<Storage>* partial;  // [parts, S * H] by Columns
  Storage *db_ih, *db_hh;           // [G * H] or null
};

template <class Cell, class Storage>
__global__ void bias_gradients(BiasGradients<Storage> a) {
  constexpr Columns<Cell> columns;
  for_each_unit<1>(Cell::gates, a.H, [&](int64_t gate, int64_t u) {
#pragma unroll
    for (int g = 0; g < Cell::gates; ++g) {
      if (g != gate) continue;
      const auto total = [&](int column) {
        Compute<Storage> sum{};
        for (int64_t part = 0; part < a.parts; ++part) {
          sum += a.partial[(part * Cell::slots + column) * a.H + u];
        }
        return sum;
      };
      if (a.db_ih) narrow(total(columns.of_slot[columns.x_slot[g]]), a.db_ih[g * a.H + u]);
      if (a.db_hh) narrow(total(columns.of_slot[columns.h_slot[g]]), a.db_hh[g * a.H + u]);
    }
  });
}

// Numbers of the host, written on the device without a copy that would wait or that a CUDA graph could
// not repeat: they travel as a kernel's argument.
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
