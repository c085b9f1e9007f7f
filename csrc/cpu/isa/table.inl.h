// The kernel tables of an instruction set, and its Target (kernels.h).

#ifdef FASTRNN_HAS_AMX
#include "cpu/isa/amx.inl.h"
#endif

template <class Storage, class Operand, class Compute, class Panel = Operand>
constexpr Kernels<Storage, Operand, Compute, Panel> make_kernels() {
  using K = Kernels<Storage, Operand, Compute, Panel>;
  K k{};
  k.lanes = lanes_of<Compute>;
  k.k_step = Dot<Operand, Compute, Panel>::k_step;
#ifdef FASTRNN_HAS_AMX
  constexpr bool tiles = std::is_same_v<Panel, Operand> &&
                         (std::is_same_v<Operand, BFloat16> || std::is_same_v<Operand, SplitFloat>);
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
      if constexpr (rows <= FASTRNN_TILE_ROWS_3)
        k.multiply[3][rows] = multiply<rows, 3, Operand, Compute, Panel>;
      if constexpr (rows <= FASTRNN_TILE_ROWS_4) {
        if constexpr (std::is_same_v<Panel, Operand>) {
          k.multiply[1][rows] = multiply<rows, 1, Operand, Compute, Panel>;
          k.multiply[2][rows] = multiply<rows, 2, Operand, Compute, Panel>;
        }
        k.multiply[4][rows] = multiply<rows, 4, Operand, Compute, Panel>;
      }
    }
  });
  k.multiply_rows = multiply_rows<Storage, Operand, Compute>;
  k.pack_transposed = pack_transposed<Storage, Operand, Compute, Panel>;
  if constexpr (std::is_same_v<Panel, Operand>) k.pack = pack<Storage, Operand, Compute>;
  k.to_compute = convert<Storage, Compute, Compute>;
  k.to_storage = convert<Compute, Storage, Compute>;
  k.to_operand = convert<Storage, Operand, Compute>;
  k.round_to_operand = convert<Compute, Operand, Compute>;
  if constexpr (K::one_type) k.sum_rows = sum_rows<Storage, Compute>;
  k.add_bias = add_bias<Compute>;
#define FASTRNN_CELL_KERNELS(name, type)                                                     \
  k.forward[static_cast<int>(CellId::name)] = cell_forward<type, Storage, Operand, Compute>; \
  k.backward[static_cast<int>(CellId::name)] = cell_backward<type, Storage, Operand, Compute>;
  FASTRNN_CELLS(FASTRNN_CELL_KERNELS)
#undef FASTRNN_CELL_KERNELS
  return k;
}

constexpr auto f32 = make_kernels<float, float, float>();
constexpr auto f64 = make_kernels<double, double, double>();
constexpr auto bf16 = make_kernels<BFloat16, float, float>();
constexpr auto f16 = make_kernels<Half, float, float>();
#ifdef FASTRNN_HAS_BF16_DOT
constexpr auto bf16_dot = make_kernels<BFloat16, BFloat16, float>();
constexpr auto f32_bf16_dot = make_kernels<float, BFloat16, float>();
#endif
#ifdef FASTRNN_HAS_AMX
constexpr auto f32_split = make_kernels<float, SplitFloat, float>();
#endif
constexpr auto f32_w16 = make_kernels<float, float, float, BFloat16>();
constexpr auto f32_w8 = make_kernels<float, float, float, int8_t>();

#define FASTRNN_NAME_OF(name) #name
#define FASTRNN_NAME(name) FASTRNN_NAME_OF(name)
extern const Target target;
const Target target = {
    FASTRNN_NAME(FASTRNN_TARGET),
    &f32,
    &f64,
    &bf16,
    &f16,
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
    &f32_w16,
    &f32_w8,
};
