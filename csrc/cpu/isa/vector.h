// SIMD vectors of FASTRNN_VECTOR_BYTES, for the instruction set that this file is compiled for, on the
// compiler's own vector types: arithmetic, comparison and selection are its operators.
//
// Included inside namespace fastrnn::FASTRNN_TARGET by target.h, after every other header.

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};
template <class T>
using Vec = typename VectorOf<T, FASTRNN_VECTOR_BYTES>::type;
template <class T>
constexpr int lanes_of = FASTRNN_VECTOR_BYTES / sizeof(T);

// Calls body(std::integral_constant) for 0 .. n - 1.
template <int... n, class Body>
FASTRNN_INLINE constexpr void for_constants(std::integer_sequence<int, n...>, Body body) {
  (body(std::integral_constant<int, n>{}), ...);
}

// Vectors of the formats that are only stored: as many numbers as a Vec<float>.
using Bits16 = VectorOf<uint16_t, FASTRNN_VECTOR_BYTES / 2>::type;
using Bits32 = Vec<uint32_t>;

using Int8s = VectorOf<int8_t, FASTRNN_VECTOR_BYTES / 4>::type;  // as many as a Vec<float>

template <class C>
FASTRNN_INLINE Vec<C> splat(C value) {
  return Vec<C>{} + value;
}

FASTRNN_INLINE Vec<float> widen(Bits16 bits, BFloat16) {
  return bits_as<Vec<float>>(__builtin_convertvector(bits, Bits32) << 16);
}

// To nearest, ties to even; a NaN stays one.
FASTRNN_INLINE Bits16 narrow(Vec<float> v, BFloat16) {
  const Bits32 bits = bits_as<Bits32>(v);
  const Bits32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Bits32 quiet = (bits >> 16) | 0x40u;
  return __builtin_convertvector(v == v ? rounded : quiet, Bits16);
}

// int8 by the instruction for it: GCC would convert one number after the other.
#if FASTRNN_VECTOR_BYTES == 64
FASTRNN_INLINE Vec<int32_t> widen(Int8s bytes) {
  return bits_as<Vec<int32_t>>(_mm512_maskz_cvtepi8_epi32(0xffff, bits_as<__m128i>(bytes)));
}
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) {
  return bits_as<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
}
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) {
  return bits_as<Bits16>(_mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif FASTRNN_VECTOR_BYTES == 32
FASTRNN_INLINE Vec<int32_t> widen(Int8s bytes) {
  return bits_as<Vec<int32_t>>(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bits_as<int64_t>(bytes))));
}
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) {
  return bits_as<Vec<float>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
}
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) {
  return bits_as<Bits16>(_mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
FASTRNN_INLINE Vec<int32_t> widen(Int8s bytes) { return __builtin_convertvector(bytes, Vec<int32_t>); }

// Without a conversion instruction: shift the fields into a float's places and let a multiplication by
// 2^112 (or its inverse) move the exponent's bias, subnormal numbers included.
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) {
  const Bits32 wide = __builtin_convertvector(bits, Bits32);
  const Bits32 sign = (wide & 0x8000u) << 16;
  const Bits32 rest = (wide & 0x7fffu) << 13;
  const Bits32 scaled = bits_as<Bits32>(bits_as<Vec<float>>(rest) * 0x1p112f);
  const Bits32 special = rest | 0x7f800000u;  // infinity and NaN
  return bits_as<Vec<float>>(sign | (rest >= 0x0f800000u ? special : scaled));
}
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) {
  const Bits32 bits = bits_as<Bits32>(v);
  const Bits32 sign = (bits >> 16) & 0x8000u;
  const Bits32 magnitude = bits & 0x7fffffffu;
  // Normal numbers: round to nearest even at bit 13 and move the bias. Subnormal: adding 0.5 puts the
  // last place of a half's subnormal numbers at the float's last place, so that the addition rounds.
  const Bits32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits32 subnormal = bits_as<Bits32>(bits_as<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  Bits32 out = magnitude < (113u << 23) ? subnormal : normal;
  out = magnitude >= 0x477ff000u ? Bits32{} + 0x7c00u : out;
  out = magnitude > 0x7f800000u ? Bits32{} + 0x7e00u : out;
  return __builtin_convertvector(sign | out, Bits16);
}
#endif

// The first `count` numbers of a vector, the others zero or left alone; by mask where there is one, since a
// copy whose size the compiler does not know is a call of a function.
template <class V, class Number>
FASTRNN_INLINE V load_some(const Number* from, int64_t count) {
  V v{};
#if FASTRNN_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<Number, float>) return bits_as<V>(_mm512_maskz_loadu_ps(mask, from));
  if constexpr (std::is_same_v<Number, double>) return bits_as<V>(_mm512_maskz_loadu_pd(mask, from));
  if constexpr (sizeof(Number) == 2) return bits_as<V>(_mm256_maskz_loadu_epi16(mask, from));
#endif
  memcpy(&v, from, count * sizeof(Number));
  return v;
}
template <class V, class Number>
FASTRNN_INLINE void store_some(Number* to, V v, int64_t count) {
#if FASTRNN_VECTOR_BYTES == 64
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<Number, float>) return _mm512_mask_storeu_ps(to, mask, bits_as<__m512>(v));
  if constexpr (std::is_same_v<Number, double>) return _mm512_mask_storeu_pd(to, mask, bits_as<__m512d>(v));
  if constexpr (sizeof(Number) == 2) return _mm256_mask_storeu_epi16(to, mask, bits_as<__m256i>(v));
#endif
  memcpy(to, &v, count * sizeof(Number));
}

// `count` numbers from memory, of any stored format, as a vector; the lanes beyond are zero. A count of
// all lanes, known at compile time, is one load.
template <class C>
  requires std::is_floating_point_v<C>
FASTRNN_INLINE Vec<C> load(const C* from, int64_t count) {
  if (count != lanes_of<C>) return load_some<Vec<C>>(from, count);
  Vec<C> v;
  memcpy(&v, from, sizeof(v));
  return v;
}
template <class Stored>
FASTRNN_INLINE Vec<float> load_stored(const Stored* from, int64_t count) {
  Bits16 bits;
  if (count == lanes_of<float>) {
    memcpy(&bits, from, sizeof(bits));
  } else {
    bits = load_some<Bits16>(from, count);
  }
  return widen(bits, Stored{});
}
FASTRNN_INLINE Vec<float> load(const BFloat16* from, int64_t count) { return load_stored(from, count); }
FASTRNN_INLINE Vec<float> load(const Half* from, int64_t count) { return load_stored(from, count); }

FASTRNN_INLINE Vec<float> load(const int8_t* from, int64_t) {
  Int8s bytes;
  memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(widen(bytes), Vec<float>);
}

template <class C>
  requires std::is_floating_point_v<C>
FASTRNN_INLINE void store(C* to, Vec<C> v, int64_t count) {
  if (count == lanes_of<C>) {
    memcpy(to, &v, sizeof(v));
  } else {
    store_some(to, v, count);
  }
}
template <class Stored>
FASTRNN_INLINE void store_narrow(Stored* to, Vec<float> v, int64_t count) {
  const Bits16 bits = narrow(v, Stored{});
  if (count == lanes_of<float>) {
    memcpy(to, &bits, sizeof(bits));
  } else {
    store_some(to, bits, count);
  }
}
FASTRNN_INLINE Vec<float> load(const SplitFloat* from, int64_t count) {
  Bits32 words{};
  memcpy(&words, from, count * sizeof(SplitFloat));
  return bits_as<Vec<float>>(words << 16) + bits_as<Vec<float>>(words & 0xffff0000u);
}
// The low part of an infinity is zero, so that the sum is the infinity.
FASTRNN_INLINE void store(SplitFloat* to, Vec<float> v, int64_t count) {
  const Bits16 high = narrow(v, BFloat16{});
  const Vec<float> widened = widen(high, BFloat16{});
  const Bits16 low = narrow(v == widened ? Vec<float>{} : v - widened, BFloat16{});
  const Bits32 words = __builtin_convertvector(high, Bits32) | (__builtin_convertvector(low, Bits32) << 16);
  memcpy(to, &words, count * sizeof(SplitFloat));
}

FASTRNN_INLINE void store(BFloat16* to, Vec<float> v, int64_t count) { store_narrow(to, v, count); }
FASTRNN_INLINE void store(Half* to, Vec<float> v, int64_t count) { store_narrow(to, v, count); }

// Calls body(u, count) over 0 .. units in vectors: whole ones with a constant count, then the rest.
template <class C, class Body>
FASTRNN_INLINE void for_vectors(int64_t units, Body body) {
  int64_t u = 0;
  for (; u + lanes_of<C> <= units; u += lanes_of<C>) body(u, int64_t{lanes_of<C>});
  if (u < units) body(u, units - u);
}

// Of lanes in blocks of d: a's even blocks, each followed by b's even block, and the same of odd blocks.
// V is any vector type of n lanes.
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

// Lane i of the result is the sum of the lanes of v[i], which is overwritten.
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
