// Assembles the kernel tables of one instruction set. A file in targets/ defines
//
//   FASTRNN_TARGET         the namespace, and the name users see
//   FASTRNN_VECTOR_BYTES   16, 32 or 64
//   FASTRNN_ROWS_3, _4     rows of a tile of three and of four vectors that fill the registers
//   FASTRNN_HAS_BF16_DOT   if products of bfloat16 pairs are one instruction
//
// then includes every header that is not the project's, switches the compiler to the instruction set,
// and includes this file. Everything compiled under the switch is in a namespace of its own or always
// inlined: a function shared with other files could be kept in its fastest version and run anywhere.

#include "kernels.h"

#include "lanes.h"

namespace fastrnn {
namespace FASTRNN_TARGET {

#include "simd.h"

#include "multiply.h"

#include "rows.h"

template <class Storage, class Operand, class Compute, class Panel = Operand>
constexpr Kernels<Storage, Operand, Compute, Panel> make_kernels() {
  using K = Kernels<Storage, Operand, Compute, Panel>;
  K k{};
  k.lanes = lanes_of<Compute>;
  k.k_step = Dot<Operand, Compute, Panel>::k_step;
  k.rows_3 = FASTRNN_ROWS_3;
  k.rows_4 = FASTRNN_ROWS_4;
#define FASTRNN_TILE(vectors, rows)                                               \
  if constexpr (rows <= (vectors == 3 ? FASTRNN_ROWS_3 : FASTRNN_ROWS_4)) {       \
    k.multiply[vectors][rows] = multiply<rows, vectors, Operand, Compute, Panel>; \
  }
#define FASTRNN_TILES(rows) FASTRNN_TILE(3, rows) FASTRNN_TILE(4, rows)
  FASTRNN_TILES(1)
  FASTRNN_TILES(2)
  FASTRNN_TILES(3)
  FASTRNN_TILES(4)
  FASTRNN_TILES(5)
  FASTRNN_TILES(6)
  FASTRNN_TILES(7)
  FASTRNN_TILES(8)
#undef FASTRNN_TILES
#undef FASTRNN_TILE
  k.multiply_rows = multiply_rows<Storage, Operand, Compute>;
  k.pack_transposed = pack_transposed<Storage, Operand, Compute, Panel>;
  if constexpr (std::is_same_v<Panel, Operand>) k.pack = pack<Storage, Operand, Compute>;
  k.to_compute = convert<Storage, Compute, Compute>;
  k.to_storage = convert<Compute, Storage, Compute>;
  k.to_operand = convert<Storage, Operand, Compute>;
  k.round_to_operand = convert<Compute, Operand, Compute>;
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
constexpr auto f32_w16 = make_kernels<float, float, float, BFloat16>();
constexpr auto f32_w8 = make_kernels<float, float, float, int8_t>();

extern const Target target;
const Target target = {
    FASTRNN_TARGET_NAME,
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
    &f32_w16,
    &f32_w8,
};

}  // namespace FASTRNN_TARGET
}  // namespace fastrnn
