// A cell's equations (cells/) over the units of a block, for some rows: CellForward and CellBackward in
// kernels.h.

// What a cell is given at unit u of row m besides gates and states: its weights, then the step's inputs.
template <class Cell, class Compute, class Args>
FASTRNN_INLINE void load_given(const Args& t, int64_t m, int64_t u, int64_t count,
                               Vec<Compute> (&e)[given_length<Cell>]) {
#pragma GCC unroll 8
  for (int i = 0; i < unit_weights<Cell>; ++i) e[i] = load(t.unit_weights + i * t.H + u, count);
#pragma GCC unroll 8
  for (int i = 0; i < step_inputs<Cell>; ++i) {
    e[unit_weights<Cell> + i] = load(t.step_inputs + m * t.step_inputs_row + i * t.H + u, count);
  }
}

template <class Cell, class Storage, class Operand, class Compute>
void cell_forward(const CellForward<Storage, Operand, Compute>& t) {
  for (int64_t m = 0; m < t.rows; ++m) {
    for_vectors<Compute>(t.units, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
      Vec<Compute> s[Cell::slots];
#pragma GCC unroll 8
      for (int g = 0; g < Cell::gates; ++g) {
        s[Cell::x_slot[g]] = load(t.pre + m * t.pre_row + g * t.H + u, count);
      }
#pragma GCC unroll 8
      for (int g = 0; g < Cell::gates; ++g) {
        const Vec<Compute> part = load(t.acc + m * t.acc_row + g * t.block + u, lanes_of<Compute>);
        if (Cell::h_slot[g] == Cell::x_slot[g]) {
          s[Cell::h_slot[g]] += part;
        } else {
          s[Cell::h_slot[g]] = part + load(t.b_hh + g * t.H + u, count);
        }
      }
      const Vec<Compute> h_prev = load(t.h_prev + m * t.h_row + u, count);
      Vec<Compute> h, c[states_length<Cell>] = {}, c_prev[states_length<Cell>] = {};
#pragma GCC unroll 8
      for (int i = 0; i < own_states<Cell>; ++i) c_prev[i] = load(t.c + m * t.c_row + i * t.H + u, count);
      if constexpr (HasCounts<Cell>) {
        Vec<Compute> e[given_length<Cell>];
        load_given<Cell, Compute>(t, m, u, count, e);
        Cell::forward(s, h_prev, c_prev, e, h, c);
      } else {
        Cell::forward(s, h_prev, c_prev[0], h, c[0]);
      }
      store(t.h + m * t.h_row + u, h, count);
      if (t.y) store(t.y + m * t.y_row + u, h, count);
      if constexpr (!std::is_same_v<Operand, Compute>) {
        if (t.operand) store(t.operand + m * t.operand_row + u, h, count);
      }
#pragma GCC unroll 8
      for (int i = 0; i < own_states<Cell>; ++i) {
        store(t.c + m * t.c_row + i * t.H + u, c[i], count);
        if (t.c_out) store(t.c_out + m * t.c_out_row + i * t.H + u, c[i], count);
      }
      if constexpr (Cell::keeps_slots) {
        if (t.slots) {
#pragma GCC unroll 8
          for (int i = 0; i < Cell::slots; ++i) {
            store(t.slots + m * t.slots_row + i * t.H + u, s[i], count);
          }
        }
      }
    });
  }
}

// Adds the gradients of a unit's weights to those of other steps; those of the step's inputs are whole.
template <class Cell, class Compute, class Args>
FASTRNN_INLINE void store_given(const Args& t, int64_t m, int64_t u, int64_t count,
                                const Vec<Compute> (&de)[given_length<Cell>]) {
#pragma GCC unroll 8
  for (int i = 0; i < unit_weights<Cell>; ++i) {
    Compute* sum = t.d_unit_weights + m * t.d_unit_weights_row + i * t.H + u;
    store(sum, load(sum, count) + de[i], count);
  }
  if (t.d_step_inputs == nullptr) return;
#pragma GCC unroll 8
  for (int i = 0; i < step_inputs<Cell>; ++i) {
    store(t.d_step_inputs + (m * step_inputs<Cell> + i) * t.H + u, de[unit_weights<Cell> + i], count);
  }
}

template <class Cell, class Storage, class Operand, class Compute>
void cell_backward(const CellBackward<Storage, Operand, Compute>& t) {
  for (int64_t m = 0; m < t.rows; ++m) {
    for_vectors<Compute>(t.units, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
      Vec<Compute> dh = load(t.carry_h + m * t.carry_h_row + u, count);
      if (t.acc) dh += load(t.acc + m * t.acc_row + u, lanes_of<Compute>);
      if (t.dy) dh += load(t.dy + m * t.dy_row + u, count);
      Vec<Compute> s[Cell::slots] = {};
      if constexpr (Cell::keeps_slots) {
#pragma GCC unroll 8
        for (int i = 0; i < Cell::slots; ++i) {
          s[i] = load(t.slots + m * t.slots_row + i * t.H + u, count);
        }
      }
      Vec<Compute> c[states_length<Cell>] = {}, c_prev[states_length<Cell>] = {},
                   dc[states_length<Cell>] = {}, dc_prev[states_length<Cell>];
#pragma GCC unroll 8
      for (int i = 0; i < own_states<Cell>; ++i) {
        c[i] = load(t.c + m * t.c_state_row + i * t.H + u, count);
        c_prev[i] = load(t.c_prev + m * t.c_prev_row + i * t.H + u, count);
        dc[i] = load(t.carry_c + m * t.carry_c_row + i * t.H + u, count);
        if (t.dc) dc[i] += load(t.dc + m * t.dc_row + i * t.H + u, count);
      }
      const Vec<Compute> h = load(t.h + m * t.h_row + u, count);
      const Vec<Compute> h_prev = load(t.h_prev + m * t.h_prev_row + u, count);
      if constexpr (Cell::projects) {
        if (t.output) store(t.output + m * t.output_row + u, Cell::output(s, c[0]), count);
      }
      Vec<Compute> d[Cell::slots], dh_prev;
      if constexpr (HasCounts<Cell>) {
        Vec<Compute> e[given_length<Cell>], de[given_length<Cell>];
        load_given<Cell, Compute>(t, m, u, count, e);
        Cell::backward(s, h, h_prev, c, c_prev, e, dh, dc, d, dh_prev, dc_prev, de);
        store_given<Cell, Compute>(t, m, u, count, de);
      } else {
        Cell::backward(s, h, h_prev, c[0], c_prev[0], dh, dc[0], d, dh_prev, dc_prev[0]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < Cell::slots; ++i) {
        store(t.d_slots + m * t.d_slots_row + i * t.H + u, d[i], count);
        store(t.operand + m * t.operand_row + i * t.operand_slot + u, d[i], count);
      }
      store(t.carry_h + m * t.carry_h_row + u, dh_prev, count);
#pragma GCC unroll 8
      for (int i = 0; i < own_states<Cell>; ++i) {
        store(t.carry_c + m * t.carry_c_row + i * t.H + u, dc_prev[i], count);
      }
    });
  }
}
