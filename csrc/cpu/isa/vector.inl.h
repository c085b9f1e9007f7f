// SIMD vectors of FASTRNN_VECTOR_BYTES as the compiler's own vector types: arithmetic, comparison and
// selection are its operators.

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Vec = typename VectorOf<T, FASTRNN_VECTOR_BYTES>::type;
template <class T>
constexpr int lanes_of = FASTRNN_VECTOR_BYTES / sizeof(T);

// Formats that are only stored: as many numbers as a Vec<float>.
using Bits16 = VectorOf<uint16_t, FASTRNN_VECTOR_BYTES / 2>::type;
using Bits32 = Vec<uint32_t>;

template <class C>
FASTRNN_INLINE Vec<C> splat(C value) {
  return Vec<C>{} + value;
}

// Calls body(std::integral_constant) for 0 .. n - 1.
template <int... n, class Body>
FASTRNN_INLINE constexpr void for_constants(std::integer_sequence<int, n...>, Body body) {
  (body(std::integral_constant<int, n>{}), ...);
}

// Calls body(u, count) over 0 .. units in vectors: whole ones with a constant count, then the rest.
template <class C, class Body>
FASTRNN_INLINE void for_vectors(int64_t units, Body body) {
  int64_t u = 0;
  for (; u + lanes_of<C> <= units; u += lanes_of<C>) body(u, int64_t{lanes_of<C>});
  if (u < units) body(u, units - u);
}

// With lanes grouped into blocks of d: each even block of a, followed by the same block of b; odd_blocks:
// the same for odd blocks. V is any vector type of n lanes.
template <int d, class V, size_t... lane>
FASTRNN_INLINE V even_blocks(V a, V b, std::index_sequence<lane...>) {
  constexpr int n = sizeof...(lane);
  return __builtin_shufflevector(a, b, (int(lane) / d % 2 == 0 ? int(lane) : n + int(lane) - d)...);
}
template <int d, class V, size_t... lane>
FASTRNN_INLINE V odd_blocks(V a, V b, std::index_sequence<lane...>) {
  constexpr int n = sizeof...(lane);
  return __builtin_shufflevector(a, b, (int(lane) / d % 2 == 0 ? int(lane) + d : n + int(lane))...);
}

// Transposes n vectors of n lanes: swaps the off-diagonal blocks of ever smaller squares.
template <int n, class V, int d = n / 2>
FASTRNN_INLINE void transpose(V (&v)[n]) {
  if constexpr (d > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i / d % 2 != 0) continue;
      const V a = v[i], b = v[i + d];
      v[i] = even_blocks<d>(a, b, std::make_index_sequence<n>{});
      v[i + d] = odd_blocks<d>(a, b, std::make_index_sequence<n>{});
    }
    transpose<n, V, d / 2>(v);
  }
}

// Lane i of the result is the sum of the lanes of v[i]. Overwrites v.
template <int n, class V, int d = n / 2>
FASTRNN_INLINE V sums(V (&v)[n]) {
  if constexpr (d == 0) {
    return v[0];
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < d; ++i) {
      v[i] = even_blocks<d>(v[i], v[i + d], std::make_index_sequence<n>{}) +
             odd_blocks<d>(v[i], v[i + d], std::make_index_sequence<n>{});
    }
    return sums<n, V, d / 2>(v);
  }
}
