// Biases: added to the input's part of the pre-activations; their gradients, sums over rows.

// As declared in kernels.h. Adds every 16 rows, then pairs of those sums, pairs of pairs and so on, so that
// the rounding error grows with the logarithm of the number of rows.
template <class Storage, class Compute>
void sum_rows(int64_t rows, int64_t n, const Storage* from, int64_t row, Compute* to) {
  constexpr int64_t few = 16;
  for_vectors<Compute>(n, [&](int64_t u, int64_t count) __attribute__((always_inline)) {
    Vec<Compute> pair[48];  // pair[i], if bit i of `sums` is set: a sum of few << i rows
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
