// Lanes (cells/math.h) for SIMD vectors of FASTRNN_VECTOR_BYTES. In namespace fastrnn.

#define FASTRNN_VECTOR(scalar) scalar __attribute__((vector_size(FASTRNN_VECTOR_BYTES)))
#if defined(FASTRNN_HAS_AVX512)
// One instruction each, which gives its second operand if either is NaN; GCC makes two of a comparison.
#define FASTRNN_CLAMPS(scalar, suffix)                                                           \
  using V = FASTRNN_VECTOR(scalar);                                                              \
  static FASTRNN_INLINE V at_least(V x, V low) { return _mm512_maskz_max_##suffix(-1, low, x); } \
  static FASTRNN_INLINE V at_most(V x, V high) { return _mm512_maskz_min_##suffix(-1, high, x); }
#define FASTRNN_VECTOR_BASE(scalar)
#elif defined(__aarch64__)
// One instruction each, which gives NaN if either is.
#define FASTRNN_CLAMPS(scalar, suffix)                                            \
  using V = FASTRNN_VECTOR(scalar);                                               \
  static FASTRNN_INLINE V at_least(V x, V low) { return vmaxq_##suffix(x, low); } \
  static FASTRNN_INLINE V at_most(V x, V high) { return vminq_##suffix(x, high); }
#define FASTRNN_VECTOR_BASE(scalar)
#else
#define FASTRNN_CLAMPS(scalar, suffix)
#define FASTRNN_VECTOR_BASE(scalar) : Clamps<FASTRNN_VECTOR(scalar)>
#endif

#define FASTRNN_VECTOR_LANES(scalar, suffix, integer)                \
  template <>                                                        \
  struct Lanes<FASTRNN_VECTOR(scalar)> FASTRNN_VECTOR_BASE(scalar) { \
    using Scalar = scalar;                                           \
    typedef FASTRNN_VECTOR(integer Int);                             \
    FASTRNN_CLAMPS(scalar, suffix)                                   \
  };
#if defined(__aarch64__)
FASTRNN_VECTOR_LANES(float, f32, int32_t)
FASTRNN_VECTOR_LANES(double, f64, int64_t)
#else
FASTRNN_VECTOR_LANES(float, ps, int32_t)
FASTRNN_VECTOR_LANES(double, pd, int64_t)
#endif

#undef FASTRNN_VECTOR_LANES
#undef FASTRNN_VECTOR_BASE
#undef FASTRNN_CLAMPS
#undef FASTRNN_VECTOR
