// What takes instructions that the compiler's vector types do not lead to, each with a plain form for
// targets without them: float16 conversion, incomplete vectors, products of bfloat16 pairs and of bytes.
// (lanes.inl.h has clamps, amx.inl.h matrix tiles.)

#if defined(FASTRNN_HAS_AVX512)
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) {
  return bits_as<Vec<float>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(bits)));
}
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) {
  return bits_as<Bits16>(_mm512_maskz_cvtps_ph(0xffff, bits_as<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTRNN_HAS_F16C)
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) {
  return bits_as<Vec<float>>(_mm256_cvtph_ps(bits_as<__m128i>(bits)));
}
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) {
  return bits_as<Bits16>(_mm256_cvtps_ph(bits_as<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(FASTRNN_HAS_NEON)
FASTRNN_INLINE Vec<float> widen(Bits16 bits, Half) { return vcvt_f32_f16(bits_as<float16x4_t>(bits)); }
FASTRNN_INLINE Bits16 narrow(Vec<float> v, Half) { return bits_as<Bits16>(vcvt_f16_f32(v)); }
#else
// Shifts the fields into a float's places. A multiplication by 2^112 (or its inverse) corrects the
// exponent's bias, for subnormal numbers too.
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
  // Normal numbers: round to nearest even at bit 13 and correct the bias. Subnormal numbers: 0.5 has its
  // last place where a subnormal half has its own, so adding it rounds.
  const Bits32 normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const Bits32 subnormal = bits_as<Bits32>(bits_as<Vec<float>>(magnitude) + 0.5f) - 0x3f000000u;
  Bits32 out = magnitude < (113u << 23) ? subnormal : normal;
  out = magnitude >= 0x477ff000u ? Bits32{} + 0x7c00u : out;
  out = magnitude > 0x7f800000u ? Bits32{} + 0x7e00u : out;
  return __builtin_convertvector(sign | out, Bits16);
}
#endif

// The first `count` numbers of a vector; the others are zero (load) or not written (store). By masks where
// possible, since GCC calls a function for a copy of unknown size.
template <class V, class Number>
FASTRNN_INLINE V load_some(const Number* from, int64_t count) {
#if defined(FASTRNN_HAS_AVX512)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<Number, float>) return bits_as<V>(_mm512_maskz_loadu_ps(mask, from));
  if constexpr (std::is_same_v<Number, double>) return bits_as<V>(_mm512_maskz_loadu_pd(mask, from));
  if constexpr (sizeof(Number) == 2) return bits_as<V>(_mm256_maskz_loadu_epi16(mask, from));
#endif
  V v{};
  memcpy(&v, from, count * sizeof(Number));
  return v;
}
template <class V, class Number>
FASTRNN_INLINE void store_some(Number* to, V v, int64_t count) {
#if defined(FASTRNN_HAS_AVX512)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (std::is_same_v<Number, float>) return _mm512_mask_storeu_ps(to, mask, bits_as<__m512>(v));
  if constexpr (std::is_same_v<Number, double>) return _mm512_mask_storeu_pd(to, mask, bits_as<__m512d>(v));
  if constexpr (sizeof(Number) == 2) return _mm256_mask_storeu_epi16(to, mask, bits_as<__m256i>(v));
#endif
  memcpy(to, &v, count * sizeof(Number));
}

#if defined(FASTRNN_HAS_BF16_DOT)
// Pairs of bfloat16, as many as a Vec<float> has numbers; add_pairs adds x[2i] w[2i] + x[2i+1] w[2i+1] to
// sum[i].
#if defined(FASTRNN_HAS_AVX512)
using Pairs = __m512bh;
FASTRNN_INLINE void add_pairs(Vec<float>& sum, Pairs x, Pairs w) {
  sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, x, w);
}
#else
using Pairs = bfloat16x8_t;
FASTRNN_INLINE void add_pairs(Vec<float>& sum, Pairs x, Pairs w) { sum = vbfdotq_f32(sum, x, w); }
#endif
#endif

// The low byte of each number.
FASTRNN_INLINE void store_low_bytes(void* to, Vec<int32_t> v) {
#if defined(FASTRNN_HAS_AVX512)
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xffff, bits_as<__m512i>(v)));
#else
  const auto bytes = __builtin_convertvector(v, VectorOf<uint8_t, FASTRNN_VECTOR_BYTES / 4>::type);
  memcpy(to, &bytes, sizeof(bytes));
#endif
}

#if defined(FASTRNN_HAS_INT8_DOT)
// Adds the products of 4 unsigned bytes of x with 4 signed ones of w to each sum. In assembly, since GCC 12
// copies the sum before and after the intrinsic, which takes as long as the product.
FASTRNN_INLINE void add_byte_products(Vec<int32_t>& sum, Vec<int32_t> x, Vec<int32_t> w) {
#if defined(FASTRNN_HAS_NEON)
  sum = vusdotq_s32(sum, bits_as<uint8x16_t>(x), bits_as<int8x16_t>(w));
#elif defined(FASTRNN_HAS_AVX512)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
#endif
}
#else
using Int16s = Vec<int16_t>;
// Adds the products of 2 numbers of x with 2 of w, each of 9 bits at most, to each sum.
FASTRNN_INLINE void add_pairs(Vec<int32_t>& sum, Int16s x, Int16s w) {
#if defined(FASTRNN_HAS_AVX512)
  const auto mask = static_cast<__mmask16>(0xffff);
  sum += bits_as<Vec<int32_t>>(_mm512_maskz_madd_epi16(mask, bits_as<__m512i>(x), bits_as<__m512i>(w)));
#elif defined(FASTRNN_HAS_AVX2)
  sum += bits_as<Vec<int32_t>>(_mm256_madd_epi16(bits_as<__m256i>(x), bits_as<__m256i>(w)));
#elif defined(FASTRNN_HAS_NEON)
  sum = vpadalq_s16(sum, x * w);  // 255 * 127 fits in 16 bits
#else
  const auto products = bits_as<Vec<int32_t>>(x * w);  // 255 * 127 fits in 16 bits
  sum += ((products << 16) >> 16) + (products >> 16);
#endif
}
#endif

#if defined(FASTRNN_HAS_NEON)
// Adds the products of w with one lane of x to the sums: of numbers, of pairs of bfloat16, of fours of
// bytes.
template <int lane>
FASTRNN_INLINE void add_by_lane(Vec<float>& sum, Vec<float> x, Vec<float> w) {
  sum = vfmaq_laneq_f32(sum, w, x, lane);
}
template <int lane>
FASTRNN_INLINE void add_by_lane(Vec<double>& sum, Vec<double> x, Vec<double> w) {
  sum = vfmaq_laneq_f64(sum, w, x, lane);
}
#if defined(FASTRNN_HAS_BF16_DOT)
template <int lane>
FASTRNN_INLINE void add_by_lane(Vec<float>& sum, Pairs x, Pairs w) {
  sum = vbfdotq_laneq_f32(sum, w, x, lane);
}
#endif
#if defined(FASTRNN_HAS_INT8_DOT)
template <int lane>
FASTRNN_INLINE void add_by_lane(Vec<int32_t>& sum, Vec<int32_t> x, Vec<int32_t> w) {
  sum = vsudotq_laneq_s32(sum, bits_as<int8x16_t>(w), bits_as<uint8x16_t>(x), lane);
}
#endif
#endif
