// sigmoid and tanh for layers with packed weights of fewer bits: two thirds of the operations of
// cells/math.h. Largest error: 2e-6 (asserted by tests/kernels/test_math.py), far below that of such
// weights. NaN stays NaN. A sigmoid may leave 0 .. 1 by the error.

// tanh(x / n) / n = x P(x^2 / n^2) / (n^2 Q(x^2 / n^2)), with the minimax approximation of tanh for
// magnitudes up to 7, from where on tanh is 1 within the error.
template <int n>
FASTRNN_INLINE Vec<float> scaled_tanh(Vec<float> x) {
  constexpr float saturates = 7 * n, by = 1.0f / (n * n);
  constexpr float p[] = {0.9999957f * by, 0.1230218f * by * by, 2.2769861e-3f * by * by * by,
                         3.9299985e-6f * by * by * by * by};
  constexpr float q[] = {1, 0.45634028f * by, 2.1072168e-2f * by * by, 1.4235053e-4f * by * by * by};
  x = clamp(x, -saturates, saturates);
  const Vec<float> square = x * x;
  const Vec<float> numerator = ((p[3] * square + p[2]) * square + p[1]) * square + p[0];
  const Vec<float> denominator = ((q[3] * square + q[2]) * square + q[1]) * square + q[0];
  return x * numerator / denominator;
}

// Numbers whose sigmoid and tanh are these.
struct Approximate {
  Vec<float> v;

  friend FASTRNN_INLINE Approximate operator+(Approximate a, Approximate b) { return {a.v + b.v}; }
  friend FASTRNN_INLINE Approximate operator-(Approximate a, Approximate b) { return {a.v - b.v}; }
  friend FASTRNN_INLINE Approximate operator*(Approximate a, Approximate b) { return {a.v * b.v}; }
  friend FASTRNN_INLINE Approximate sigmoid(Approximate a) { return {scaled_tanh<2>(a.v) + 0.5f}; }
  friend FASTRNN_INLINE Approximate tanh(Approximate a) { return {scaled_tanh<1>(a.v)}; }
  friend FASTRNN_INLINE Approximate relu(Approximate a) { return {fastrnn::relu(a.v)}; }
};

// A cell that computes its forward equations in them.
template <class Cell>
struct Approximately : Cell {
  static FASTRNN_INLINE void forward(Vec<float> (&s)[Cell::slots], Vec<float> h_prev, Vec<float> c_prev,
                                     Vec<float>& h, Vec<float>& c) {
    Approximate slots[Cell::slots], new_h, new_c{c};
#pragma GCC unroll 16
    for (int i = 0; i < Cell::slots; ++i) slots[i] = {s[i]};
    Cell::forward(slots, Approximate{h_prev}, Approximate{c_prev}, new_h, new_c);
#pragma GCC unroll 16
    for (int i = 0; i < Cell::slots; ++i) s[i] = slots[i].v;
    h = new_h.v;
    c = new_c.v;
  }
};

// What layers of rounded weights compute: the above, if the cell's equations need no other operations.
template <class Cell>
struct RoundedCell {
  using Chosen = Cell;
};
template <class Cell>
  requires Cell::approximable
struct RoundedCell<Cell> {
  using Chosen = Approximately<Cell>;
};
