// Kernels of the step driver: a cell's equations over the units of one step's rows. cuBLAS computes the
// matrix products.
#pragma once

#include "cuda/common/elementwise.cuh"
#include "cuda/common/sequence.cuh"

namespace fastrnn::cuda {

// ---- Forward ----

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
__global__ void __launch_bounds__(block_threads, 1) cell_forward(CellForward<Storage> a) {
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

// ---- Backward ----

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
__global__ void __launch_bounds__(block_threads, 1) cell_backward(CellBackward<Storage> a) {
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

}  // namespace fastrnn::cuda
