// Products of bytes: rows and weights quantized to 8 bits, their products summed in 32 bits. Sums are
// exact, so that every instruction set gives the same results.
//
// A row is x = scale * q with q in -127 .. 127, stored as q + 128, with q = 0 up to a multiple of k_step,
// then the scale, a float. A panel is [k / 4][columns][4] weights in -127 .. 127, in four consecutive k;
// then, for each column, the int32 that its sums start from, -128 times the sum of its weights, which
// cancels the 128 in the rows; then each column's scale. Sums fit in 32 bits for k up to 2^17.

constexpr int bytes_in_word = 4;
#ifdef FASTRNN_HAS_AMX
constexpr int int8_k_step = 64;
#else
constexpr int int8_k_step = bytes_in_word;
#endif

constexpr int64_t int8_padded(int64_t k) { return (k + int8_k_step - 1) / int8_k_step * int8_k_step; }

using Int32s = Vec<int32_t>;

// How 4 bytes of a row are multiplied with 4 of each column and added to a vector of sums.
#ifdef FASTRNN_HAS_INT8_DOT
struct Int8Dot {
  static constexpr int pair = bytes_in_word;
  using Weight = Int32s;
  static FASTRNN_INLINE Weight broadcast(const QuantizedByte* a) {
    int32_t word;
    memcpy(&word, a, sizeof(word));
    return splat(word);
  }
  static FASTRNN_INLINE Weight weight(const int8_t* panel) {
    Weight w;
    memcpy(&w, panel, sizeof(w));
    return w;
  }
  static FASTRNN_INLINE void add(Int32s& sum, Weight x, Weight w) { add_byte_products(sum, x, w); }
};
#else
// As numbers of 16 bits: AVX2's instruction for bytes would saturate.
struct Int8Dot {
  static constexpr int pair = bytes_in_word;
  struct Weight {
    Int16s even, odd;
  };
  static FASTRNN_INLINE Weight broadcast(const QuantizedByte* a) {
    uint32_t word;
    memcpy(&word, a, sizeof(word));
    const auto bytes = bits_as<Vec<uint16_t> >(splat(word));
    return {bits_as<Int16s>(bytes & 0xff), bits_as<Int16s>(bytes >> 8)};
  }
  static FASTRNN_INLINE Weight weight(const int8_t* panel) {
    Int16s bytes;
    memcpy(&bytes, panel, sizeof(bytes));
    return {(bytes << 8) >> 8, bytes >> 8};
  }
  static FASTRNN_INLINE void add(Int32s& sum, Weight x, Weight w) {
    add_pairs(sum, x.even, w.even);
    add_pairs(sum, x.odd, w.odd);
  }
};
#endif

// Sums as the products that they stand for.
FASTRNN_INLINE Vec<float> dequantize(Int32s sum, float row_scale, Vec<float> column_scale) {
  return __builtin_convertvector(sum, Vec<float>) * (row_scale * column_scale);
}

// kernels.h: Multiply, without accumulation.
template <int rows, int vectors>
void multiply_int8(int64_t k, const QuantizedByte* const* a, const int8_t* panel, int64_t /*panel_row*/,
                   float* acc, bool /*accumulate*/) {
  constexpr int lanes = lanes_of<float>;
  const int8_t* const starts = panel + k * vectors * lanes;
  Int32s sum[chains_of<rows, vectors>][rows][vectors] = {};
  const QuantizedByte* row[rows];
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
    row[m] = a[m];
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) memcpy(&sum[0][m][n], starts + n * sizeof(Int32s), sizeof(Int32s));
  }
  constexpr int64_t width = vectors * sizeof(Int32s);
  add_products<Int8Dot>(sum, k, row, panel, width);
  const float* scales = reinterpret_cast<const float*>(starts) + vectors * lanes;
#pragma GCC unroll 8
  for (int m = 0; m < rows; ++m) {
    float scale;
    memcpy(&scale, row[m] + k, sizeof(scale));
#pragma GCC unroll 4
    for (int n = 0; n < vectors; ++n) {
      store(acc + (m * vectors + n) * lanes,
            dequantize(total_of(sum, m, n), scale, load(scales + n * lanes, lanes)), lanes);
    }
  }
}

// Added to a number of few bits, leaves it, rounded to an integer, in the low bits: 1.5 * 2^23.
constexpr float to_integer = 12582912.0f;

// The scale that makes the row's largest magnitude 127; NaN for a row that holds NaN or infinity, 0 for one
// that is as good as zero.
inline float row_scale(int64_t n, const float* from) {
  // Magnitudes are ordered as their bits are, with infinity and NaN above all others.
  Int32s largest{};
  for_vectors<float>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Int32s magnitude = bits_as<Int32s>(load(from + i, count)) & INT32_MAX;
    largest = magnitude > largest ? magnitude : largest;
  });
  int32_t bits = 0;
  for (int i = 0; i < lanes_of<float>; ++i) bits = largest[i] > bits ? largest[i] : bits;
  const float magnitude = bits_as<float>(bits), scale = magnitude / 127;
  constexpr float tiny = 1e-30f;  // whose inverse, times 127, is still finite
  return magnitude < tiny ? 0 : scale + (magnitude - magnitude);
}

inline void quantize_row(int64_t n, const float* from, QuantizedByte* to) {
  constexpr int lanes = lanes_of<float>;
  const float scale = row_scale(n, from), inverse = scale > 0 ? 1 / scale : 0;
  for_vectors<float>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Int32s q = bits_as<Int32s>(load(from + i, count) * inverse + (to_integer + 128));
    if (count == lanes) {
      store_low_bytes(to + i, q);
    } else {
      QuantizedByte bytes[lanes];
      store_low_bytes(bytes, q);
      memcpy(to + i, bytes, count);
    }
  });
  const int64_t padded = int8_padded(n);
  memset(to + n, 128, padded - n);
  memcpy(to + padded, &scale, sizeof(scale));
}

// Panel of one block of a product with w transposed, as Kernels::pack_transposed. Each column has the scale
// that makes its largest weight 127.
inline void pack_int8(int64_t k, const float* w, int64_t w_row, int gates, int64_t H, int64_t units,
                      int64_t block, int8_t* panel) {
  const int64_t columns = gates * block, padded = int8_padded(k);
  int32_t* starts = reinterpret_cast<int32_t*>(panel + padded * columns);
  float* scales = reinterpret_cast<float*>(starts + columns);
  memset(panel, 0, padded * columns + columns * (sizeof(*starts) + sizeof(*scales)));
  for (int64_t n = 0; n < columns; ++n) {
    if (n % block >= units) continue;
    const float* row = w + (n / block * H + n % block) * w_row;
    const float scale = row_scale(k, row), inverse = scale > 0 ? 1 / scale : 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < k; ++i) {
      const auto rounded = static_cast<int8_t>(bits_as<int32_t>(row[i] * inverse + to_integer));
      panel[(i / bytes_in_word * columns + n) * bytes_in_word + i % bytes_in_word] = rounded;
      sum += rounded;
    }
    starts[n] = -128 * sum;
    scales[n] = scale;
  }
}
