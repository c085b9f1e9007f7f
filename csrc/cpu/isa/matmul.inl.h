// Matrix products of a tile of rows with a panel (multiply), or with unpacked weights (multiply_unpacked).

// How `pair` numbers of a row are multiplied with as many rows of a panel, stored side by side, and added
// to a vector of sums. Panels are padded to a multiple of k_step rows.
template <class Operand, class Compute>
struct Dot {
  static_assert(std::is_same_v<Operand, Compute>);
  static constexpr int pair = 1, k_step = 1;
  using Weight = Vec<Compute>;
  static FASTRNN_INLINE Weight weight(const Operand* panel) { return load(panel, lanes_of<Compute>); }
  static FASTRNN_INLINE Weight broadcast(const Operand* a) { return splat(*a); }
  static FASTRNN_INLINE void add(Vec<Compute>& sum, Weight x, Weight w) { sum += x * w; }
};

#ifdef FASTRNN_HAS_BF16_DOT
template <>
struct Dot<BFloat16, float> {
  static constexpr int pair = 2;
#ifdef FASTRNN_HAS_AMX
  static constexpr int k_step = 32;
#else
  static constexpr int k_step = pair;
#endif
  using Weight = Pairs;
  static FASTRNN_INLINE Weight weight(const BFloat16* panel) {
    Weight w;
    memcpy(&w, panel, sizeof(w));
    return w;
  }
  static FASTRNN_INLINE Weight broadcast(const BFloat16* a) {
    int32_t bits;
    memcpy(&bits, a, sizeof(bits));
    return bits_as<Weight>(splat(bits));
  }
  static FASTRNN_INLINE void add(Vec<float>& sum, Weight x, Weight w) { add_pairs(sum, x, w); }
};
#endif

#ifdef FASTRNN_HAS_AMX
// Words of a high and a low part, which matrix tiles multiply as pairs.
template <>
struct Dot<SplitFloat, float> {
  static constexpr int pair = 1, k_step = 16;
};
#endif

// The number of sets of sums, `chains`, of a tile: one of few sums has several, added up at the end, since
// with one set each addition would wait for the one before.
template <int rows, int vectors, bool in_order = false>
constexpr int chains_of = in_order || rows * vectors >= 8 ? 1
                          : rows * vectors >= 6           ? 2
                                                          : 4;

// Adds to a tile's sums the products of `rows` rows, from their first k numbers, with a panel. Step i of k
// is added to chain i % chains. D: how they are multiplied.
template <class D, int chains, int rows, int vectors, class Sum, class Operand, class Panel>
FASTRNN_INLINE void add_products(Sum (&sum)[chains][rows][vectors], int64_t k,
                                 const Operand* const (&row)[rows], const Panel* panel, int64_t panel_row) {
  constexpr int lanes = lanes_of<float> * sizeof(float) / sizeof(sum[0][0][0][0]);
  using Weight = typename D::Weight;
  const auto step = [&](int chain, int64_t at, const Panel* p) __attribute__((always_inline)) {
    Weight w[vectors];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) w[n] = D::weight(p + n * lanes * D::pair);
#pragma GCC unroll 8
    for (int m = 0; m < rows; ++m) {
      const Weight x = D::broadcast(row[m] + at);
#pragma GCC unroll 4
      for (int n = 0; n < vectors; ++n) D::add(sum[chain][m][n], x, w[n]);
    }
  };
  int64_t i = 0;
#ifdef FASTRNN_HAS_NEON
  // A vector of each row at a time, whose lanes instructions take as they take a broadcast number.
  if constexpr (requires(Weight w) { add_by_lane<0>(sum[0][0][0], w, w); }) {
    for (; i + lanes * D::pair <= k; i += lanes * D::pair) {
      Weight x[rows];
#pragma GCC unroll 8
      for (int m = 0; m < rows; ++m) memcpy(&x[m], row[m] + i, sizeof(x[m]));
      for_constants(std::make_integer_sequence<int, lanes>{},
                    [&](auto lane) __attribute__((always_inline)) {
                      Weight w[vectors];
#pragma GCC unroll 4
                      for (int n = 0; n < vectors; ++n) w[n] = D::weight(panel + n * lanes * D::pair);
#pragma GCC unroll 8
                      for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
                        for (int n = 0; n < vectors; ++n)
                          add_by_lane<lane>(sum[lane % chains][m][n], x[m], w[n]);
                      }
                      panel += panel_row;
                      // Keeps GCC from loading weights ahead, into registers that the sums need.
                      asm volatile("" ::: "memory");
                    });
    }
  }
#endif
  for (; i + chains * D::pair <= k; i += chains * D::pair) {
#pragma GCC unroll 4
    for (int chain = 0; chain < chains; ++chain) {
      step(chain, i + chain * D::pair, panel);
      panel += panel_row;
    }
  }
  for (; i < k; i += D::pair, panel += panel_row) step(0, i, panel);
}

// The sum over a tile's chains.
template <int chains, int rows, int vectors, class Sum>
FASTRNN_INLINE Sum total_of(const Sum (&sum)[chains][rows][vectors], int m, int n) {
  Sum total = sum[0][m][n];
#pragma GCC unroll 4
  for (int chain = 1; chain < chains; ++chain) total += sum[chain][m][n];
  return total;
}

// kernels.h: Multiply.
template <int rows, int vectors, class Operand, class Compute>
void multiply(int64_t k, const Operand* const* a, const Operand* panel, int64_t panel_row, Compute* acc,
              bool accumulate) {
  constexpr int lanes = lanes_of<Compute>;
  // Narrow tiles form gradients of weights as well. If loss weights alternate over the batch, each of
  // several chains would add terms of one sign, and their rounding errors would remain when the chains
  // cancel.
  constexpr bool in_order = rows > 1 && vectors <= 2;
  Vec<Compute> sum[chains_of<rows, vectors, in_order>][rows][vectors] = {};
  const Operand* row[rows];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) row[m] = a[m];
  add_products<Dot<Operand, Compute> >(sum, k, row, panel, panel_row);
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) {
      Vec<Compute> total = total_of(sum, m, n);
      Compute* to = acc + (m * vectors + n) * lanes;
      if (accumulate) total += load(to, lanes);
      store(to, total, lanes);
    }
  }
}

// How two rows, both read along k, are multiplied: a vector of each at a time.
template <class Operand, class Storage, class Compute>
struct RowDot {
  static constexpr int64_t numbers = lanes_of<Compute>;
  using Word = Vec<Compute>;
  template <class Number>
  static FASTRNN_INLINE Word read(const Number* from, int64_t count) {
    return load(from, count);
  }
  static FASTRNN_INLINE void add(Vec<Compute>& sum, Word x, Word w) { sum += x * w; }
};

#ifdef FASTRNN_HAS_BF16_DOT
template <>
struct RowDot<BFloat16, BFloat16, float> : Dot<BFloat16, float> {
  static constexpr int64_t numbers = 2 * lanes_of<float>;
  using Word = Weight;
  static FASTRNN_INLINE Word read(const BFloat16* from, int64_t count) {
    Word w{};
    memcpy(&w, from, count * sizeof(BFloat16));
    return w;
  }
};
#endif

// Products of `weight_rows` rows of w with `rows` rows of a, all read along k: a vector of sums for each,
// whose lanes are added at the end. w has `exist` more rows; beyond these the last one is read again.
template <int rows, class Compute, class Operand, class Storage>
FASTRNN_INLINE void multiply_unpacked_tile(int64_t k, const Operand* const* a, const Storage* w,
                                           int64_t w_row, int64_t exist, Compute* acc, int64_t acc_row) {
  using D = RowDot<Operand, Storage, Compute>;
  constexpr int lanes = lanes_of<Compute>;
  constexpr int weight_rows = lanes / rows;
  Vec<Compute> sum[lanes] = {};
  const Storage* row[weight_rows];
#pragma GCC unroll 16
  for (int n = 0; n < weight_rows; ++n) row[n] = w + (n < exist ? n : exist - 1) * w_row;
  const auto step = [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    typename D::Word x[rows];
#pragma GCC unroll 4
    for (int m = 0; m < rows; ++m) x[m] = D::read(a[m] + i, count);
#pragma GCC unroll 16
    for (int n = 0; n < weight_rows; ++n) {
      const typename D::Word y = D::read(row[n] + i, count);
#pragma GCC unroll 4
      for (int m = 0; m < rows; ++m) D::add(sum[m * weight_rows + n], x[m], y);
    }
  };
  int64_t i = 0;
  for (; i + D::numbers <= k; i += D::numbers) step(i, D::numbers);
  if (i < k) step(i, k - i);
  const Vec<Compute> total = sums<lanes>(sum);
#pragma GCC unroll 4
  for (int m = 0; m < rows; ++m) {
    memcpy(acc + m * acc_row, reinterpret_cast<const Compute*>(&total) + m * weight_rows,
           weight_rows * sizeof(Compute));
  }
}

template <int rows, class Compute, class Operand, class Storage>
FASTRNN_INLINE void multiply_unpacked_block(int64_t k, const Operand* const* a, const Storage* w,
                                            int64_t w_row, int gates, int64_t H, int64_t units,
                                            int64_t block, Compute* acc) {
  constexpr int weight_rows = lanes_of<Compute> / rows;
  for (int g = 0; g < gates; ++g) {
    for (int64_t u = 0; u < units; u += weight_rows) {
      multiply_unpacked_tile<rows>(k, a, w + (g * H + u) * w_row, w_row, units - u, acc + g * block + u,
                                   gates * block);
    }
  }
}

template <class Storage, class Operand, class Compute>
void multiply_unpacked(int rows, int64_t k, const Operand* const* a, const Storage* w, int64_t w_row,
                       int gates, int64_t H, int64_t units, int64_t block, Compute* acc) {
  constexpr int most = lanes_of<Compute> < 4 ? lanes_of<Compute> : 4;
  for (; rows >= most; rows -= most, a += most, acc += most * gates * block) {
    multiply_unpacked_block<most>(k, a, w, w_row, gates, H, units, block, acc);
  }
  if (most > 2 && rows >= 2) {
    multiply_unpacked_block<2>(k, a, w, w_row, gates, H, units, block, acc);
    rows -= 2, a += 2, acc += 2 * gates * block;
  }
  if (rows == 1) multiply_unpacked_block<1>(k, a, w, w_row, gates, H, units, block, acc);
}
