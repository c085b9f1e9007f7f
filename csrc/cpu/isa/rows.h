// Row-wise kernels: the cells' equations over the units of a block, conversions, packing.
//
// Included inside namespace fastrnn::FASTRNN_TARGET by target.h.

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

template <class From, class To, class Compute>
void convert(int64_t n, const From* from, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    memcpy(to, from, n * sizeof(To));
  } else {
    for_vectors<Compute>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
      const Vec<Compute> v = load(from + i, count);
      store(to + i, v, count);
    });
  }
}

// Sums of some rows each, then of pairs of these sums, of pairs of pairs and so on, so that rounding errors
// grow with the logarithm of the number of rows.
template <class Storage, class Compute>
void sum_rows(int64_t rows, int64_t n, const Storage* from, int64_t row, Compute* to) {
  constexpr int64_t few = 16;
  for_vectors<Compute>(n, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
    Vec<Compute> pair[48];  // pair[i], where bit i of `sums` is set: a sum of few << i rows
    int64_t sums = 0;
    for (int64_t m = 0; m < rows; ++sums) {
      Vec<Compute> sum{};
      for (const int64_t end = m + few < rows ? m + few : rows; m < end; ++m) {
        sum += load(from + m * row + u, count);
      }
      int i = 0;
      for (; sums >> i & 1; ++i) sum += pair[i];
      pair[i] = sum;
    }
    Vec<Compute> total{};
    for (int i = 0; sums >> i; ++i) {
      if (sums >> i & 1) total += pair[i];
    }
    store(to + u, total, count);
  });
}

template <class Compute>
void add_bias(int rows, int gates, int64_t units, int64_t block, int64_t H, const Compute* acc,
              const Compute* bias, Compute* pre, int64_t pre_row) {
  for (int m = 0; m < rows; ++m) {
    for (int g = 0; g < gates; ++g) {
      const Compute* from = acc + (m * gates + g) * block;
      for_vectors<Compute>(units, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
        const Vec<Compute> v = load(from + u, lanes_of<Compute>) + load(bias + g * H + u, count);
        store(pre + m * pre_row + g * H + u, v, count);
      });
    }
  }
}

// Units of a panel's k: one number, or a pair as one word where products take pairs.
template <int pair, class Compute>
using PanelWord = std::conditional_t<pair == 2, uint32_t, Compute>;

// The numbers k, k + 1, .. of a row of w as panel words, zero beyond `count` numbers.
template <int pair, class Compute, class Storage>
FASTRNN_INLINE Vec<PanelWord<pair, Compute>> load_words(const Storage* from, int64_t count) {
  constexpr int64_t lanes = lanes_of<Compute>;
  if constexpr (pair == 1) {
    return count < lanes ? load(from, count) : load(from, lanes);
  } else {
    BFloat16 pairs[2 * lanes] = {};
    convert<Storage, BFloat16, Compute>(count < 2 * lanes ? count : 2 * lanes, from, pairs);
    Vec<uint32_t> words;
    memcpy(&words, pairs, sizeof(words));
    return words;
  }
}

// Squares of lanes x lanes words are transposed in registers, so that reads and writes both run along
// cache lines; store(word, column, vector) puts away a vector of a panel's row. Calls it for all words and
// columns, of which those that do not exist are zero. D: the Dot that will read the panel.
template <class D, class Compute, class Storage, class Store>
FASTRNN_INLINE void transpose_panel(int64_t k, const Storage* w, int64_t w_row, int gates, int64_t H,
                                    int64_t units, int64_t block, Store store_row) {
  using Word = PanelWord<D::pair, Compute>;
  constexpr int lanes = lanes_of<Compute>;
  // A square with words that exist has all of the padding.
  static_assert(D::k_step <= D::pair * lanes);
  const int64_t words = (k + D::pair - 1) / D::pair;
  const int64_t padded = (k + D::k_step - 1) / D::k_step * (D::k_step / D::pair);
  for (int g = 0; g < gates; ++g) {
    for (int64_t u = 0; u < block; u += lanes) {
      for (int64_t p = 0; p < words; p += lanes) {
        Vec<Word> square[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          const Storage* from = w + (g * H + u + i) * w_row + p * D::pair;
          square[i] = u + i < units ? load_words<D::pair, Compute>(from, k - p * D::pair) : Vec<Word>{};
        }
        transpose(square);
        const int64_t rows = padded - p < lanes ? padded - p : lanes;
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) {
          if (i >= rows) break;
          store_row(p + i, g * block + u, square[i]);
        }
      }
    }
  }
}

template <class Storage, class Operand, class Compute, class Panel>
void pack_transposed(int64_t k, const Storage* w, int64_t w_row, int gates, int64_t H, int64_t units,
                     int64_t block, Panel* panel) {
  using D = Dot<Operand, Compute, Panel>;
  const int64_t columns = gates * block;
  if constexpr (std::is_same_v<Panel, int8_t>) {
    // A column's largest weight is 127 of its scale.
    Compute* scales = reinterpret_cast<Compute*>(panel + k * columns);
    for (int64_t n = 0; n < columns; ++n) scales[n] = 0;
    auto magnitude = [&](int64_t, int64_t column, Vec<Compute> v) __attribute__((always_inline)) {
      const Vec<Compute> seen = load(scales + column, lanes_of<Compute>);
      v = v < 0 ? -v : v;
      store(scales + column, v > seen ? v : seen, lanes_of<Compute>);
    };
    transpose_panel<D, Compute>(k, w, w_row, gates, H, units, block, magnitude);
    for (int64_t n = 0; n < columns; ++n) scales[n] = scales[n] > 0 ? scales[n] / 127 : Compute(1);
    auto round = [&](int64_t i, int64_t column, Vec<Compute> v) __attribute__((always_inline)) {
      v = v / load(scales + column, lanes_of<Compute>);
      v = v < 0 ? v - Compute(0.5) : v + Compute(0.5);
      const auto narrow = __builtin_convertvector(v, Int8s);
      memcpy(panel + i * columns + column, &narrow, sizeof(narrow));
    };
    transpose_panel<D, Compute>(k, w, w_row, gates, H, units, block, round);
  } else {
    using Word = PanelWord<D::pair, Compute>;
    auto put = [&](int64_t i, int64_t column, Vec<Word> v) __attribute__((always_inline)) {
      Panel* to = panel + (i * columns + column) * D::pair;
      if constexpr (std::is_same_v<Panel, Compute> || D::pair == 2) {
        memcpy(to, &v, sizeof(v));
      } else {
        store(to, v, lanes_of<Compute>);
      }
    };
    transpose_panel<D, Compute>(k, w, w_row, gates, H, units, block, put);
  }
}

template <class Storage, class Operand, class Compute>
void pack(int64_t k, const Storage* w, int64_t w_row, int64_t units, int64_t block, Operand* panel) {
  using D = Dot<Operand, Compute, Operand>;
  constexpr int step = D::pair;
  const int64_t padded = (k + D::k_step - 1) / D::k_step * D::k_step;
  Operand row[max_tile_vectors * lanes_of<Compute>];
  for (int64_t i = 0; i < padded; ++i) {
    Operand* to = panel + i / step * block * step + i % step;
    const int64_t exist = i < k ? units : 0;
    convert<Storage, Operand, Compute>(exist, w + i * w_row, step == 1 ? to : row);
    if constexpr (step == 1) {
      for (int64_t u = exist; u < block; ++u) to[u] = Operand{};
    } else {
      for (int64_t u = 0; u < block; ++u) to[u * step] = u < exist ? row[u] : Operand{};
    }
  }
}
