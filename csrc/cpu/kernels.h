// The kernels: what is compiled once for each instruction set (isa/), as tables of function pointers.
//
// Four types. Storage: of the tensors. Operand: what products read, Storage or what it is converted to.
// Compute: of sums, states and the cells' equations. Panel: of packed weights, Operand, or int8 if rows are
// quantized. A quantized row ends with its scale, and a panel for such rows with two numbers of 4 bytes for
// each column (isa/int8.inl.h).
//
// A block is the units that one tile computes. A product writes a tile acc [rows][vectors * lanes]: in the
// forward pass [rows][gates][block], in a backward pass or projection [rows][block]. A panel holds a tile's
// columns side by side, [k][columns], so that a tile reads one stream.
#pragma once

#include <type_traits>

#include "layer/args.h"

namespace fastrnn {

constexpr int max_tile_rows = 16;  // of matrix tiles; tiles of vectors have at most 8
constexpr int max_tile_vectors = 4;
constexpr int max_unpacked_rows = 8;  // that the driver multiplies with unpacked weights in one call

// The cell's forward equations for some rows and the units of a block. Pointers are at the first row and
// the first unit; *_row are strides from row to row, H the stride from gate to gate or slot to slot of a
// row.
template <class Storage, class Operand, class Compute>
struct CellForward {
  int rows;
  int64_t units;       // at most block
  int64_t block, H;    // stride from gate to gate: of acc, and of the others
  const Compute* acc;  // recurrent part [rows][gates][block]
  int64_t acc_row;
  const Compute* pre;  // input's part [rows][gates * H]
  int64_t pre_row;
  const Compute* b_hh;    // [gates * H], added to recurrent parts that have a slot of their own
  const Compute* h_prev;  // the state before this step, and after it; may be the same memory
  Compute* h;
  int64_t h_row;
  Operand* operand;  // the new h as the next product reads it; unused if that is h itself
  int64_t operand_row;
  Compute* c;  // [rows][own_states * H], updated in place
  int64_t c_row;
  Storage* y;  // or null, if a projection follows
  int64_t y_row;
  Storage* c_out;  // or null
  int64_t c_out_row;
  Storage* slots;  // or null
  int64_t slots_row;
  const Storage* unit_weights;  // [unit_weights * H]
  const Storage* step_inputs;   // [rows][step_inputs * H]
  int64_t step_inputs_row;
};

// The cell's backward equations for some rows and the units of a block.
template <class Storage, class Operand, class Compute>
struct CellBackward {
  int rows;
  int64_t units, H;
  const Compute* acc;  // the product's part of dh [rows][block], or null
  int64_t acc_row;
  Compute* carry_h;  // in: the rest of dh; out: the part of dh_prev that is no product
  int64_t carry_h_row;
  Compute* carry_c;  // in: dc of later steps; out: dc_prev
  int64_t carry_c_row;
  const Storage* dy;  // or null
  int64_t dy_row;
  const Storage* dc;  // or null
  int64_t dc_row;
  const Storage* slots;  // or null
  int64_t slots_row;
  const Storage *h, *h_prev;
  int64_t h_row, h_prev_row;
  const Storage *c, *c_prev;
  int64_t c_state_row, c_prev_row;
  Storage* output;  // h before a projection, for cells that have one; or null
  int64_t output_row;
  Storage* d_slots;
  int64_t d_slots_row;
  Operand* operand;                   // d_slots as the next product reads it
  int64_t operand_row, operand_slot;  // strides of operand from row to row and from slot to slot
  const Storage* unit_weights;        // as in CellForward
  const Storage* step_inputs;
  int64_t step_inputs_row;
  Compute* d_unit_weights;  // [rows][unit_weights * H], added to
  int64_t d_unit_weights_row;
  Storage* d_step_inputs;  // [rows][step_inputs * H], or null
};

template <class Storage_, class Operand_, class Compute_>
struct Kernels {
  using Storage = Storage_;
  using Operand = Operand_;
  using Compute = Compute_;
  static constexpr bool quantizes = std::is_same_v<Operand, QuantizedByte>;
  using Panel = std::conditional_t<quantizes, int8_t, Operand>;
  // Of the new h that a cell writes for the next product. It quantizes none, which takes a whole row.
  using CellOperand = std::conditional_t<quantizes, Compute, Operand>;
  static constexpr bool one_type = std::is_same_v<Storage, Compute> && std::is_same_v<Operand, Compute>;

  int lanes;           // Compute numbers in a vector
  int k_step;          // k of a product, of packed panels and of operand rows is a multiple of this
  int rows_3, rows_4;  // most rows of tiles 3 vectors wide, and of tiles 1, 2 and 4 wide

  int tile_rows(int vectors) const { return vectors == 3 ? rows_3 : rows_4; }
  // Width of a tile for a product with so many columns: no more than they fill, if there is a choice.
  int vectors_for(int64_t columns) const {
    if (multiply[1][1] == nullptr || columns > 2 * lanes) return 4;
    return columns > lanes ? 2 : 1;
  }

  // multiply[vectors][rows]: acc[m][n] (+)= sum over k of a[m][k] * panel[k][n], for 1..tile_rows rows m at
  // a constant distance, and vectors * lanes columns n. 3 or 4 vectors; without matrix tiles, and
  // unless quantizes, also 1 or 2. panel_row: stride from k to k + k_step.
  using Multiply = void (*)(int64_t k, const Operand* const* a, const Panel* panel, int64_t panel_row,
                            Compute* acc, bool accumulate);
  Multiply multiply[max_tile_vectors + 1][max_tile_rows + 1];

  // The same from unpacked weights, for few rows: column g * block + u of acc is the product with row
  // g * H + u of w, for u < units. Any number of rows; columns beyond the units are undefined.
  void (*multiply_unpacked)(int rows, int64_t k, const Operand* const* a, const Storage* w, int64_t w_row,
                            int gates, int64_t H, int64_t units, int64_t block, Compute* acc);

  // Packs the panel of a block for a product with w transposed: column g * block + u is row g * H + u of w.
  void (*pack_transposed)(int64_t k, const Storage* w, int64_t w_row, int gates, int64_t H, int64_t units,
                          int64_t block, Panel* panel);
  // Packs the panel of a block for a product with w: column u is column u of w. Unless quantizes.
  void (*pack)(int64_t k, const Storage* w, int64_t w_row, int64_t units, int64_t block, Operand* panel);

  void (*to_compute)(int64_t n, const Storage* from, Compute* to);
  void (*to_storage)(int64_t n, const Compute* from, Storage* to);
  void (*to_operand)(int64_t n, const Storage* from, Operand* to);
  void (*round_to_operand)(int64_t n, const Compute* from, Operand* to);
  // Quantizes a row of n numbers and appends padding and the scale. Only if quantizes: replaces the two
  // above.
  void (*quantize)(int64_t n, const Compute* from, Operand* to);
  // to[u] = sum over rows of from[row][u]; only if one_type
  void (*sum_rows)(int64_t rows, int64_t n, const Storage* from, int64_t row, Compute* to);
  // pre[row][g * H + u] = acc[row][g * block + u] + bias[g * H + u]
  void (*add_bias)(int rows, int gates, int64_t units, int64_t block, int64_t H, const Compute* acc,
                   const Compute* bias, Compute* pre, int64_t pre_row);

  void (*forward[static_cast<int>(CellId::count)])(const CellForward<Storage, CellOperand, Compute>&);
  void (*backward[static_cast<int>(CellId::count)])(const CellBackward<Storage, CellOperand, Compute>&);
};

// The tables that every instruction set has. One that adds only to others takes them from another.
struct FloatTables {
  Kernels<float, float, float> f32;
  Kernels<double, double, double> f64;
  Kernels<BFloat16, float, float> bf16;
  Kernels<Half, float, float> f16;
};

// An instruction set's tables. One is null if it has nothing better than float operands.
struct Target {
  const char* name;
  bool (*runs)();  // whether this processor can
  const Kernels<float, float, float>* f32;
  const Kernels<double, double, double>* f64;
  const Kernels<BFloat16, float, float>* bf16;
  const Kernels<Half, float, float>* f16;
  const Kernels<BFloat16, BFloat16, float>* bf16_dot;
  const Kernels<float, BFloat16, float>* f32_bf16_dot;   // float tensors, products of bfloat16
  const Kernels<float, SplitFloat, float>* f32_split;    // float tensors, products of their two halves
  const Kernels<float, QuantizedByte, float>* f32_int8;  // float tensors, products of bytes
};

}  // namespace fastrnn
