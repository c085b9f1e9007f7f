// Vectors of float or double from and to memory in any stored format.
//
// load(from, count) and store(to, v, count) take the first `count` numbers: load gives zero in the other
// lanes, store does not write them. A count of all lanes, known at compile time, is one instruction.

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

template <class C>
FASTRNN_INLINE Vec<C> load_numbers(const C* from, int64_t count) {
  if (count != lanes_of<C>) return load_some<Vec<C>>(from, count);
  Vec<C> v;
  memcpy(&v, from, sizeof(v));
  return v;
}
template <class C>
FASTRNN_INLINE void store_numbers(C* to, Vec<C> v, int64_t count) {
  if (count == lanes_of<C>) {
    memcpy(to, &v, sizeof(v));
  } else {
    store_some(to, v, count);
  }
}
FASTRNN_INLINE Vec<float> load(const float* from, int64_t count) { return load_numbers(from, count); }
FASTRNN_INLINE Vec<double> load(const double* from, int64_t count) { return load_numbers(from, count); }
FASTRNN_INLINE void store(float* to, Vec<float> v, int64_t count) { store_numbers<float>(to, v, count); }
FASTRNN_INLINE void store(double* to, Vec<double> v, int64_t count) { store_numbers<double>(to, v, count); }

template <class Stored>
FASTRNN_INLINE Vec<float> load_bits16(const Stored* from, int64_t count) {
  Bits16 bits;
  if (count == lanes_of<float>) {
    memcpy(&bits, from, sizeof(bits));
  } else {
    bits = load_some<Bits16>(from, count);
  }
  return widen(bits, Stored{});
}
template <class Stored>
FASTRNN_INLINE void store_bits16(Stored* to, Vec<float> v, int64_t count) {
  const Bits16 bits = narrow(v, Stored{});
  if (count == lanes_of<float>) {
    memcpy(to, &bits, sizeof(bits));
  } else {
    store_some(to, bits, count);
  }
}
FASTRNN_INLINE Vec<float> load(const BFloat16* from, int64_t count) { return load_bits16(from, count); }
FASTRNN_INLINE Vec<float> load(const Half* from, int64_t count) { return load_bits16(from, count); }
FASTRNN_INLINE void store(BFloat16* to, Vec<float> v, int64_t count) { store_bits16(to, v, count); }
FASTRNN_INLINE void store(Half* to, Vec<float> v, int64_t count) { store_bits16(to, v, count); }

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
