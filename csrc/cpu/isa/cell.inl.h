// A cell's equations (cells/) over the units of a block, for some rows: CellForward and CellBackward in
// kernels.h.

template <class Cell, class Storage, class Operand, class Compute>
void cell_forward(const CellForward<Storage, Operand, Compute>& t) {
  for (int64_t m = 0; m < t.rows; ++m) {
    for_vectors<Compute>(t.units, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
      Vec<Compute> s[Cell::slots];
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) {
        s[Cell::x_slot[g]] = load(t.pre + m * t.pre_row + g * t.H + u, count);
      }
#pragma GCC unroll 4
      for (int g = 0; g < Cell::gates; ++g) {
        const Vec<Compute> part = load(t.acc + m * t.acc_row + g * t.block + u, lanes_of<Compute>);
        if (Cell::h_slot[g] == Cell::x_slot[g]) {
          s[Cell::h_slot[g]] += part;
        } else {
          s[Cell::h_slot[g]] = part + load(t.b_hh + g * t.H + u, count);
        }
      }
      const Vec<Compute> h_prev = load(t.h_prev + m * t.h_row + u, count);
      Vec<Compute> h, c{};
      if constexpr (Cell::has_c) c = load(t.c + m * t.c_row + u, count);
      Cell::forward(s, h_prev, c, h, c);
      store(t.h + m * t.h_row + u, h, count);
      if (t.y) store(t.y + m * t.y_row + u, h, count);
      if constexpr (!std::is_same_v<Operand, Compute>) {
        if (t.operand) store(t.operand + m * t.operand_row + u, h, count);
      }
      if constexpr (Cell::has_c) {
        store(t.c + m * t.c_row + u, c, count);
        if (t.c_out) store(t.c_out + m * t.c_out_row + u, c, count);
      }
      if constexpr (Cell::keeps_slots) {
        if (t.slots) {
#pragma GCC unroll 4
          for (int i = 0; i < Cell::slots; ++i) {
            store(t.slots + m * t.slots_row + i * t.H + u, s[i], count);
          }
        }
      }
    });
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
#pragma GCC unroll 4
        for (int i = 0; i < Cell::slots; ++i) {
          s[i] = load(t.slots + m * t.slots_row + i * t.H + u, count);
        }
      }
      Vec<Compute> c{}, c_prev{}, dc{}, dc_prev{};
      if constexpr (Cell::has_c) {
        c = load(t.c + m * t.c_state_row + u, count);
        c_prev = load(t.c_prev + m * t.c_prev_row + u, count);
        dc = load(t.carry_c + m * t.carry_c_row + u, count);
        if (t.dc) dc += load(t.dc + m * t.dc_row + u, count);
      }
      const Vec<Compute> h = load(t.h + m * t.h_row + u, count);
      const Vec<Compute> h_prev = load(t.h_prev + m * t.h_prev_row + u, count);
      if constexpr (Cell::projects) {
        if (t.output) store(t.output + m * t.output_row + u, Cell::output(s, c), count);
      }
      Vec<Compute> d[Cell::slots], dh_prev;
      Cell::backward(s, h, h_prev, c, c_prev, dh, dc, d, dh_prev, dc_prev);
#pragma GCC unroll 4
      for (int i = 0; i < Cell::slots; ++i) {
        store(t.d_slots + m * t.d_slots_row + i * t.H + u, d[i], count);
        store(t.operand + m * t.operand_row + i * t.operand_slot + u, d[i], count);
      }
      store(t.carry_h + m * t.carry_h_row + u, dh_prev, count);
      if constexpr (Cell::has_c) store(t.carry_c + m * t.carry_c_row + u, dc_prev, count);
    });
  }
}
