// Gradients of weights and biases during a backward pass, for kernels of one type: products over all rows
// of the sequence, a chunk of rows at a time while the chunk is in the cache.
//
//   dw = d' inputs: a tile multiplies some columns of d, transposed, with a panel of the inputs. The sums
//   stay in the tiles' order until the last chunk.
//
// A chunk has the rows of all sequences, step by step, whether or not threads share out the batch. Terms
// often cancel over the batch, as in a loss of differences between sequences: sums over a part of the batch
// would be larger, and their rounding errors would remain when the parts cancel. torch.nn adds in this
// order too, and the sums do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "cpu/chunk.h"
#include "cpu/product.h"
#include "cpu/threads/workspace.h"

namespace fastrnn {

template <class Kernels>
class WeightGradients {
 public:
  using Number = typename Kernels::Compute;

  // d [chunk rows, d_row] has the chunk's pre-activation gradients.
  WeightGradients(const BackwardArgs<Number>& args, const Kernels& kernels, const Number* d, int64_t d_row,
                  int64_t chunk_rows, Workspace& workspace)
      : a_(args),
        k_(kernels),
        q_(args.sequence),
        cell_(cell_info(args.cell)),
        H_(args.weights.H),
        chunk_rows_(chunk_rows),
        width_(cell_.slots * H_),
        transposed_row_(operand_stride<Number>(chunk_rows)),
        d_(d),
        d_row_(d_row) {
    transposed_ = workspace.take<Number>(width_ * transposed_row_);
    bias_sums_ = workspace.take<double>(width_);
    std::fill_n(bias_sums_, width_, 0.0);
    for (auto [side, columns, slots] :
         {std::tuple{&x_, args.weights.I, cell_.x_slot}, {&h_, args.weights.P, cell_.h_slot}}) {
      side->columns = columns;
      side->vectors = k_.vectors_for(columns);
      side->block = side->vectors * k_.lanes;
      side->blocks = (columns + side->block - 1) / side->block;
      side->panels = workspace.take<Number>(side->blocks * chunk_rows * side->block);
      side->sums = workspace.take<Number>(width_ * side->blocks * side->block);
      side->slots = slots;
    }
  }

  // Adds a chunk whose d is complete. for_items(n, body) shares out body(0) .. body(n - 1);
  // previous(k, b, count, body) calls body(first, count, rows, stride) for runs of the rows b .. b + count
  // of the state before step k.
  template <class ForItems, class Previous>
  void add(Range steps, ForItems for_items, Previous previous) {
    const int64_t rows = rows_of(q_, {0, q_.B}, steps);
    // In the order of the steps' blocks, so that a thread transposes and multiplies the units it computed.
    for_items(unit_blocks() * cell_.slots, [&](int64_t i) {
      transpose(static_cast<int>(i % cell_.slots), units_of(i / cell_.slots), rows);
    });
    for_items(x_.blocks + h_.blocks, [&](int64_t n) {
      if (n < x_.blocks) {
        pack_x(steps, n);
      } else {
        pack_h(steps, n - x_.blocks, previous);
      }
    });
    const bool first = steps.end == q_.T;
    for_items(products(), [&](int64_t i) {
      const Product p = product(i);
      multiply(p.side, p.slot(), p.units, rows, first);
    });
  }

  // Writes the sums to the results.
  template <class ForItems>
  void finish(ForItems for_items) const {
    for_items(products(), [&](int64_t i) {
      const Product p = product(i);
      const bool x = &p.side == &x_;
      write(p, x ? a_.dw_ih : a_.dw_hh, x ? a_.db_ih : a_.db_hh);
    });
  }

 private:
  // One of the two factors that d is multiplied with: the input, or the state before each step.
  struct Side {
    int vectors;    // of a tile,
    int64_t block;  // and its columns
    int64_t columns, blocks;
    Number* panels;    // [blocks][chunk rows][block]
    Number* sums;      // [S * H][blocks * block], but in each tile's rows [blocks][rows][block]
    const int* slots;  // [G] of d

    Number* tile(int64_t row, int64_t n, int count) const {
      return sums + (row * blocks + n * count) * block;
    }
  };

  // One gate's gradient for a block of units, of one side.
  struct Product {
    const Side& side;
    int gate;
    Range units;
    int slot() const { return side.slots[gate]; }
  };
  int64_t products() const { return unit_blocks() * cell_.gates * 2; }
  Product product(int64_t i) const {
    const int gate = static_cast<int>(i / 2 % cell_.gates);
    return {i % 2 == 0 ? x_ : h_, gate, units_of(i / 2 / cell_.gates)};
  }

  // Blocks of units are those of the steps.
  int64_t block() const { return k_.vectors_for(H_) * k_.lanes; }
  int64_t unit_blocks() const { return (H_ + block() - 1) / block(); }
  Range units_of(int64_t j) const { return {j * block(), std::min((j + 1) * block(), H_)}; }

  void transpose(int slot, Range units, int64_t rows) {
    const int64_t column = slot * H_ + units.begin;
    k_.pack_transposed(units.size(), d_ + column, d_row_, 1, 0, rows, transposed_row_,
                       transposed_ + column * transposed_row_);
    Number sums[max_tile_vectors * 16];
    k_.sum_rows(rows, units.size(), d_ + column, d_row_, sums);
    for (int64_t u = 0; u < units.size(); ++u) bias_sums_[column + u] += sums[u];
  }

  Number* panel(const Side& side, int64_t n, int64_t row) const {
    return side.panels + (n * chunk_rows_ + row) * side.block;
  }
  void pack(const Side& side, int64_t n, int64_t row, int64_t count, const Number* from, int64_t stride) {
    const int64_t width = std::min(side.block, side.columns - n * side.block);
    k_.pack(count, from + n * side.block, stride, width, side.block, panel(side, n, row));
  }

  void pack_x(Range steps, int64_t n) {
    int64_t row = 0;
    for (int64_t k : each(steps)) {
      const int64_t t = q_.step(k);
      pack(x_, n, row, q_.batch(t), x_at(a_, t), a_.x_row);
      row += q_.batch(t);
    }
  }

  template <class Previous>
  void pack_h(Range steps, int64_t n, Previous previous) {
    int64_t row = 0;
    for (int64_t k : each(steps)) {
      const int64_t batch = q_.batch(q_.step(k));
      previous(k, 0, batch, [&](int64_t b, int64_t count, const Number* from, int64_t stride) {
        pack(h_, n, row + b, count, from, stride);
      });
      row += batch;
    }
  }

  void multiply(const Side& side, int slot, Range units, int64_t rows, bool first) {
    for_tiles(units, k_.rows_4, [&](int64_t u0, int count) {
      const int64_t row = slot * H_ + u0;
      for (int64_t n = 0; n < side.blocks; ++n) {
        for (int64_t from = 0; from < rows; from += longest_sum) {
          const Number* a[max_tile_rows];
          for (int m = 0; m < count; ++m) a[m] = transposed_ + (row + m) * transposed_row_ + from;
          k_.multiply[side.vectors][count](std::min(longest_sum, rows - from), a, panel(side, n, from),
                                           side.block, side.tile(row, n, count), !first || from > 0);
        }
      }
    });
  }

  void write(const Product& p, Number* dw, Number* db) const {
    const Side& side = p.side;
    const int64_t first_row = p.gate * H_, first_column = p.slot() * H_;
    if (db) {
      for (int64_t u : each(p.units)) db[first_row + u] = static_cast<Number>(bias_sums_[first_column + u]);
    }
    for_tiles(p.units, k_.rows_4, [&](int64_t u0, int count) {
      for (int64_t n = 0; n < side.blocks; ++n) {
        const int64_t width = std::min(side.block, side.columns - n * side.block);
        const Number* sums = side.tile(first_column + u0, n, count);
        Number* to = dw + (first_row + u0) * side.columns + n * side.block;
        for (int m = 0; m < count; ++m) {
          std::copy_n(sums + m * side.block, width, to + m * side.columns);
        }
      }
    });
  }

  const BackwardArgs<Number>& a_;
  const Kernels& k_;
  const Sequence& q_;
  const CellInfo& cell_;
  const int64_t H_, chunk_rows_, width_;
  const int64_t transposed_row_;
  const Number* d_;  // [chunk rows, d_row]
  const int64_t d_row_;
  Number* transposed_;  // [S * H, transposed_row]
  double* bias_sums_;   // [S * H]
  Side x_{}, h_{};
};

}  // namespace fastrnn
