// Conversion between number types.

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
