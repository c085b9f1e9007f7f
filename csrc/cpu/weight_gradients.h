// Gradients of weights, biases and input in the course of a backward pass: products over all rows of a
// sequence, formed a chunk of rows at a time while the chunk is in the cache of the core that made it.
//
//   dw = d' inputs: tiles of some columns of d, turned so that a tile reads along them, and a panel of the
//   inputs; their sums stay in the tiles' own order until the last chunk. dx = d w_ih: rows of d as they
//   lie.
//
// For tables of one type alone. Where a slice of the batch has a core to itself it has sums of its own too,
// which are added up at the end.
#pragma once

#include <algorithm>
#include <tuple>
#include <utility>

#include "cpu/chunk.h"
#include "cpu/product.h"

namespace fastrnn {

template <class Kernels>
class Gradients {
 public:
  using Number = typename Kernels::Compute;
  using Product = GatedProduct<Kernels>;

  Gradients(const BackwardArgs<Number>& args, const Kernels& kernels, Range batch, int threads,
            int64_t chunk_rows, Workspace& workspace)
      : a_(args),
        k_(kernels),
        q_(args.sequence),
        cell_(cell_info(args.cell)),
        batch_(batch),
        threads_(threads),
        H_(args.weights.H),
        I_(args.weights.I),
        chunk_rows_(chunk_rows),
        width_(cell_.slots * H_),
        d_row_(operand_stride<Number>(width_)),
        turned_row_(operand_stride<Number>(chunk_rows)),
        input_(kernels, args.weights.w_ih, H_, I_, cell_.gates, cell_.x_slot, /*once=*/false) {
    d_ = workspace.take<Number>(chunk_rows * d_row_);
    if (a_.dx) input_.take_panels(workspace);
    if (!a_.dw_ih) return;
    turned_ = workspace.take<Number>(width_ * turned_row_);
    bias_sums_ = workspace.take<double>(width_);
    std::fill_n(bias_sums_, width_, 0.0);
    for (auto [side, columns, slots] :
         {std::tuple{&x_, I_, cell_.x_slot}, {&h_, args.weights.P, cell_.h_slot}}) {
      side->columns = columns;
      side->vectors = k_.vectors_for(columns);
      side->block = side->vectors * k_.lanes;
      side->blocks = (columns + side->block - 1) / side->block;
      side->panels = workspace.take<Number>(side->blocks * chunk_rows * side->block);
      side->sums = workspace.take<Number>(width_ * side->blocks * side->block);
      std::fill_n(side->gate, cell_.slots, -1);
      for (int g = 0; g < cell_.gates; ++g) side->gate[slots[g]] = g;
    }
  }

  // d of a chunk's row, for the steps to write to, and the distance from row to row.
  Number* d(Range steps, int64_t k) const { return d_ + row_in_chunk(q_, batch_, steps, k) * d_row_; }
  int64_t d_row() const { return d_row_; }

  // Packs the weights; for_items(n, body) calls body(0) .. body(n - 1), as everywhere here.
  template <class ForItems>
  void start(ForItems for_items) {
    if (a_.dx) for_items(input_.blocks(), [&](int64_t j) { input_.pack(j); });
  }

  // Adds a chunk whose d is complete. previous(k, b, count, body) calls body(first, count, rows, stride)
  // over runs of the rows b .. b + count of the state before step k.
  template <class ForItems, class Previous>
  void add(Range steps, ForItems for_items, Previous previous) {
    const int64_t rows = rows_of(q_, batch_, steps);
    if (rows == 0) return;  // of a packed batch whose other slices have longer sequences
    if (a_.dw_ih) {
      // Units in the steps' own order, so that a thread turns, and multiplies, what it has computed.
      for_items(unit_blocks(), [&](int64_t j) {
        for (int s = 0; s < cell_.slots; ++s) turn(s, j, rows);
      });
      for_items(x_.blocks + h_.blocks, [&](int64_t n) {
        if (n < x_.blocks) {
          pack_x(steps, n);
        } else {
          pack_h(steps, n - x_.blocks, previous);
        }
      });
      const bool more = rows_of(q_, batch_, {steps.end, q_.T}) > 0;
      for_items(unit_blocks() * cell_.slots, [&](int64_t i) {
        multiply(static_cast<int>(i % cell_.slots), i / cell_.slots, rows, more);
      });
    }
    if (a_.dx) {
      constexpr int64_t most = 128;
      const int64_t groups = round_up((rows + most - 1) / most, threads_);
      for_items(groups, [&](int64_t i) {
        multiply_input(steps, part_of(rows, static_cast<int>(i), static_cast<int>(groups)));
      });
    }
  }

  // Sums of all slices, as the caller wants them; an item is a block of units in one slot.
  int64_t results() const { return a_.dw_ih ? unit_blocks() * cell_.slots : 0; }
  template <class Slices>
  void write(int64_t item, const Slices& slices) const {
    const int s = static_cast<int>(item % cell_.slots);
    const Range units = units_of(item / cell_.slots);
    for (int64_t u : each(units)) {
      double sum = 0;
      for (const auto& slice : slices) sum += slice.gradients->bias_sums_[s * H_ + u];
      for (const auto& [side, to] : {std::pair{&x_, a_.db_ih}, {&h_, a_.db_hh}}) {
        if (to && side->gate[s] >= 0) to[side->gate[s] * H_ + u] = static_cast<Number>(sum);
      }
    }
    for (auto [side, to] : {std::pair{&Gradients::x_, a_.dw_ih}, {&Gradients::h_, a_.dw_hh}}) {
      const Side& own = this->*side;
      const int gate = own.gate[s];
      if (gate < 0) continue;
      for_tiles(units, k_.rows_4, [&](int64_t u0, int count) {
        for (int64_t n = 0; n < own.blocks; ++n) {
          const int64_t width = std::min(own.block, own.columns - n * own.block);
          for (int m = 0; m < count; ++m) {
            Number* row = to + (gate * H_ + u0 + m) * own.columns + n * own.block;
            bool begun = false;
            for (const auto& slice : slices) {
              const Number* sums = (*slice.gradients.*side).tile(s * H_ + u0, n, count) + m * own.block;
              for (int64_t i = 0; i < width; ++i) row[i] = begun ? row[i] + sums[i] : sums[i];
              begun = true;
            }
          }
        }
      });
    }
  }

 private:
  // One of the two factors that d is multiplied with, the input or the state before each step.
  struct Side {
    int vectors;    // of a tile,
    int64_t block;  // and columns of one
    int64_t columns, blocks;
    Number* panels;       // [blocks][chunk rows][block]
    Number* sums;         // [S * H][blocks * block], but in each tile's rows [blocks][rows][block]
    int gate[max_slots];  // of each slot, or -1

    Number* tile(int64_t row, int64_t n, int count) const {
      return sums + (row * blocks + n * count) * block;
    }
  };

  // Of units, as the steps have them.
  int64_t block() const { return k_.vectors_for(H_) * k_.lanes; }
  int64_t unit_blocks() const { return (H_ + block() - 1) / block(); }
  Range units_of(int64_t j) const { return {j * block(), std::min((j + 1) * block(), H_)}; }

  void turn(int slot, int64_t j, int64_t rows) {
    const Range units = units_of(j);
    const int64_t column = slot * H_ + units.begin;
    k_.pack_transposed(units.size(), d_ + column, d_row_, 1, 0, rows, turned_row_,
                       turned_ + column * turned_row_);
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
      const Range b = present(q_, batch_, t);
      const Number* from = a_.x + (q_.first ? q_.first[t] * a_.x_row : t * a_.x_step);
      pack(x_, n, row, b.size(), from + b.begin * a_.x_row, a_.x_row);
      row += b.size();
    }
  }

  template <class Previous>
  void pack_h(Range steps, int64_t n, Previous previous) {
    int64_t row = 0;
    for (int64_t k : each(steps)) {
      const Range b = present(q_, batch_, q_.step(k));
      previous(k, b.begin, b.size(), [&](int64_t first, int64_t count, const Number* from, int64_t stride) {
        pack(h_, n, row + first - b.begin, count, from, stride);
      });
      row += b.size();
    }
  }

  void multiply(int slot, int64_t j, int64_t rows, bool more) {
    for_tiles(units_of(j), k_.rows_4, [&](int64_t u0, int count) {
      const int64_t row = slot * H_ + u0;
      for (const Side* side : {&x_, &h_}) {
        if (side->gate[slot] < 0) continue;
        for (int64_t n = 0; n < side->blocks; ++n) {
          for (int64_t from = 0; from < rows; from += longest_sum) {
            const Number* a[max_tile_rows];
            for (int m = 0; m < count; ++m) a[m] = turned_ + (row + m) * turned_row_ + from;
            k_.multiply[side->vectors][count](std::min(longest_sum, rows - from), a, panel(*side, n, from),
                                              side->block, side->tile(row, n, count), more || from > 0);
          }
        }
      }
    });
  }

  void multiply_input(Range steps, Range rows) {
    alignas(64) Number acc[max_tile_rows * max_tile_vectors * 16];
    for (int64_t j = 0; j < input_.blocks(); ++j) {
      for_tiles(rows, input_.tile_rows(), [&](int64_t row, int count) {
        const Number* a[max_tile_rows];
        for (int m = 0; m < count; ++m) a[m] = d_ + (row + m) * d_row_;
        input_.multiply(j, count, a, acc);
        for (int m = 0; m < count; ++m) {
          Number* to = a_.dx + global_row(steps, row + m) * I_ + j * input_.block();
          k_.to_storage(input_.units(j), acc + m * input_.block(), to);
        }
      });
    }
  }

  int64_t global_row(Range steps, int64_t row) const {
    int64_t k = steps.begin;
    if (!q_.first) {
      k += row / batch_.size();
      row %= batch_.size();
    } else {
      for (int64_t n; row >= (n = present(q_, batch_, q_.step(k)).size()); ++k) row -= n;
    }
    return q_.first_row(q_.step(k)) + batch_.begin + row;
  }

  const BackwardArgs<Number>& a_;
  const Kernels& k_;
  const Sequence& q_;
  const CellInfo& cell_;
  const Range batch_;
  const int threads_;  // that share the work on this batch
  const int64_t H_, I_, chunk_rows_, width_;
  const int64_t d_row_, turned_row_;
  Product input_;
  Number* d_;                    // [chunk rows, d_row]
  Number* turned_ = nullptr;     // [S * H, turned_row]
  double* bias_sums_ = nullptr;  // [S * H]
  Side x_{}, h_{};
};

}  // namespace fastrnn
