// The kernel tables of an instruction set, and its Target (kernels.h).

#ifdef FASTRNN_HAS_AMX
#include "cpu/isa/amx.inl.h"
#endif

static_assert(FASTRNN_TILE_ROWS_3 <= 8 && FASTRNN_TILE_ROWS_4 <= 8,
              "the loops over the rows of a tile are unrolled 8 times, and else leave the registers");

template <class Storage, class Operand, class Compute>
constexpr Kernels<Storage, Operand, Compute> make_kernels() {
  using K = Kernels<Storage, Operand, Compute>;
  K k{};
  k.lanes = lanes_of<Compute>;
  k.k_step = Dot<Operand, Compute>::k_step;
#ifdef FASTRNN_HAS_AMX
  constexpr bool tiles = std::is_same_v<Operand, BFloat16> || std::is_same_v<Operand, SplitFloat>;
#else
  constexpr bool tiles = false;
#endif
  k.rows_3 = tiles ? max_tile_rows : FASTRNN_TILE_ROWS_3;
  k.rows_4 = tiles ? max_tile_rows : FASTRNN_TILE_ROWS_4;
  for_constants(std::make_integer_sequence<int, max_tile_rows>{}, [&](auto row) {
    constexpr int rows = row + 1;
    if constexpr (tiles) {
#ifdef FASTRNN_HAS_AMX
      k.multiply[3][rows] = multiply_by_tiles<rows, 3, Operand>;
      k.multiply[4][rows] = multiply_by_tiles<rows, 4, Operand>;
#endif
    } else {
      if constexpr (rows <= FASTRNN_TILE_ROWS_3) k.multiply[3][rows] = multiply<rows, 3, Operand, Compute>;
      if constexpr (rows <= FASTRNN_TILE_ROWS_4) {
        k.multiply[1][rows] = multiply<rows, 1, Operand, Compute>;
        k.multiply[2][rows] = multiply<rows, 2, Operand, Compute>;
        k.multiply[4][rows] = multiply<rows, 4, Operand, Compute>;
      }
    }
  });
  k.multiply_unpacked = multiply_unpacked<Storage, Operand, Compute>;
  k.pack_transposed = pack_transposed<Storage, Operand, Compute>;
  k.pack = pack<Storage, Operand, Compute>;
  k.to_compute = convert<Storage, Compute, Compute>;
  k.to_storage = convert<Compute, Storage, Compute>;
  k.to_operand = convert<Storage, Operand, Compute>;
  k.round_to_operand = convert<Compute, Operand, Compute>;
  if constexpr (K::one_type) k.sum_rows = sum_rows<Storage, Compute>;
  k.add_bias = add_bias<Compute>;
  constexpr bool rounds = std::is_same_v<Storage, float> && std::is_same_v<Operand, BFloat16>;
#define FASTRNN_CELL_KERNELS(name, type)                                                          \
  k.forward[static_cast<int>(CellId::name)] =                                                     \
      cell_forward<std::conditional_t<rounds, RoundedCell<type>::Chosen, type>, Storage, Operand, \
                   Compute>;                                                                      \
  k.backward[static_cast<int>(CellId::name)] = cell_backward<type, Storage, Operand, Compute>;
  FASTRNN_CELLS(FASTRNN_CELL_KERNELS)
  FASTRNN_GENERATED_CELLS(FASTRNN_CELL_KERNELS)
#undef FASTRNN_CELL_KERNELS
  return k;
}

constexpr Kernels<float, QuantizedByte, float> make_int8_kernels() {
  Kernels<float, QuantizedByte, float> k{};
  k.lanes = lanes_of<float>;
  k.k_step = int8_k_step;
#ifdef FASTRNN_HAS_AMX
  k.rows_3 = k.rows_4 = max_tile_rows;
#else
  k.rows_3 = FASTRNN_TILE_ROWS_3;
  k.rows_4 = FASTRNN_TILE_ROWS_4;
#endif
  for_constants(std::make_integer_sequence<int, max_tile_rows>{}, [&](auto row) {
    constexpr int rows = row + 1;
#ifdef FASTRNN_HAS_AMX
    k.multiply[3][rows] = multiply_int8_by_tiles<rows, 3>;
    k.multiply[4][rows] = multiply_int8_by_tiles<rows, 4>;
#else
    if constexpr (rows <= FASTRNN_TILE_ROWS_3) k.multiply[3][rows] = multiply_int8<rows, 3>;
    if constexpr (rows <= FASTRNN_TILE_ROWS_4) k.multiply[4][rows] = multiply_int8<rows, 4>;
#endif
  });
  k.pack_transposed = pack_int8;
  k.quantize = quantize_row;
  k.to_compute = convert<float, float, float>;
  k.to_storage = convert<float, float, float>;
  k.add_bias = add_bias<float>;
#define FASTRNN_CELL_KERNELS(name, type) \
  k.forward[static_cast<int>(CellId::name)] = cell_forward<RoundedCell<type>::Chosen, float, float, float>;
  FASTRNN_CELLS(FASTRNN_CELL_KERNELS)
  FASTRNN_GENERATED_CELLS(FASTRNN_CELL_KERNELS)
#undef FASTRNN_CELL_KERNELS
  return k;
}

// All of these are constants: code that runs when the library is loaded would run on processors without the
// instruction set.
#ifdef FASTRNN_BASE_TARGET
constexpr const FloatTables& floats = FASTRNN_BASE_TARGET::float_tables;
#else
extern const FloatTables float_tables;
constinit const FloatTables float_tables = {
    make_kernels<float, float, float>(), make_kernels<double, double, double>(),
    make_kernels<BFloat16, float, float>(), make_kernels<Half, float, float>()};
constexpr const FloatTables& floats = float_tables;
#endif
#ifdef FASTRNN_HAS_BF16_DOT
constexpr auto bf16_dot = make_kernels<BFloat16, BFloat16, float>();
constexpr auto f32_bf16_dot = make_kernels<float, BFloat16, float>();
#endif
#ifdef FASTRNN_HAS_AMX
constexpr auto f32_split = make_kernels<float, SplitFloat, float>();
#endif
constexpr auto f32_int8 = make_int8_kernels();

#define FASTRNN_NAME_OF(name) #name
#define FASTRNN_NAME(name) FASTRNN_NAME_OF(name)
extern const Target target;
constinit const Target target = {
    FASTRNN_NAME(FASTRNN_TARGET),
    runs,
    &floats.f32,
    &floats.f64,
    &floats.bf16,
    &floats.f16,
#ifdef FASTRNN_HAS_BF16_DOT
    &bf16_dot,
    &f32_bf16_dot,
#else
    nullptr,
    nullptr,
#endif
#ifdef FASTRNN_HAS_AMX
    &f32_split,
#else
    nullptr,
#endif
    &f32_int8,
};
