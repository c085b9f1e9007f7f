// exp, sigmoid and tanh (cells/math.h), and the approximate ones, compiled for a target in place of its
// kernel tables: over arrays, one value or one vector at a time. Included by cpu/isa/target.inl.h.

#define FUNCTION(name, T)                                                            \
  void scalar_##name##_##T(int64_t n, const T* x, T* y) {                            \
    for (int64_t i = 0; i < n; ++i) y[i] = fastrnn::name(x[i]);                      \
  }                                                                                  \
  void vector_##name##_##T(int64_t n, const T* x, T* y) {                            \
    for_vectors<T>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) { \
      store(y + i, fastrnn::name(load(x + i, count)), count);                        \
    });                                                                              \
  }
#define FUNCTIONS(T) FUNCTION(exp, T) FUNCTION(sigmoid, T) FUNCTION(tanh, T)
FUNCTIONS(float)
FUNCTIONS(double)

#define APPROXIMATE(name)                                                                \
  void approximate_##name(int64_t n, const float* x, float* y) {                         \
    for_vectors<float>(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) { \
      store(y + i, name(Approximate{load(x + i, count)}).v, count);                      \
    });                                                                                  \
  }
APPROXIMATE(sigmoid)
APPROXIMATE(tanh)

#define POINTERS(form, T) {form##_exp_##T, form##_sigmoid_##T, form##_tanh_##T}
extern const MathFunctions math_functions;
const MathFunctions math_functions = {{POINTERS(scalar, float), POINTERS(vector, float)},
                                      {POINTERS(scalar, double), POINTERS(vector, double)},
                                      {approximate_sigmoid, approximate_tanh}};
