// Products of a few rows with a weight matrix, a block of units at a time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/threads/workspace.h"
#include "layer/range.h"

namespace fastrnn {

inline int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Distance between operand rows: whole cache lines, and an odd number of them, since rows a power of
// two apart would all compete for the same few places in the first-level cache.
template <class Operand>
int64_t operand_stride(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(Operand);
  const int64_t lines = (columns + line - 1) / line;
  return (lines | 1) * line;
}

// Numbers in the largest acc: a tile's rows, with a vector or more for each gate.
constexpr int64_t acc_size = max_tile_rows * max_gates * 16;

// acc = rows * w', by gate: acc column g * block + u is the product with row g * H + u of w [gates*H, K].
template <class Kernels>
class TransposedProduct {
 public:
  using Storage = typename Kernels::Storage;
  using Operand = typename Kernels::Operand;
  using Compute = typename Kernels::Compute;
  using Panel = typename Kernels::Panel;

  TransposedProduct(const Kernels& kernels, const Storage* w, int64_t k, int gates, int64_t H)
      : kernels_(kernels), w_(w), k_(k), gates_(gates), H_(H) {
    tiles_ = (gates + max_tile_vectors - 1) / max_tile_vectors;
    tile_gates_ = (gates + tiles_ - 1) / tiles_;
    vectors_ = tile_gates_ == 3 ? 3 : 4;
    block_ = vectors_ / tile_gates_ * kernels.lanes;
    k_padded_ = round_up(k, kernels.k_step);
  }

  // Without panels, products read the weights unpacked.
  void use_panels(char* panels) { panels_ = panels; }
  int64_t panel_bytes() const { return tiles_ * tile_bytes(); }
  int64_t bytes() const { return blocks() * panel_bytes(); }

  int64_t block() const { return block_; }
  int64_t blocks() const { return (H_ + block_ - 1) / block_; }
  int64_t units(int64_t j) const { return std::min(block_, H_ - j * block_); }
  int64_t columns() const { return gates_ * block_; }
  int64_t tile_rows() const { return panels_ ? kernels_.tile_rows(vectors_) : max_unpacked_rows; }

  void pack(int64_t j) const {
    for (int tile = 0; tile < tiles_; ++tile) {
      const Storage* w = w_ + (first_gate(tile) * H_ + j * block_) * k_;
      kernels_.pack_transposed(k_, w, k_, tile_gates_, H_, units(j), block_, panel(j, tile));
    }
  }

  void multiply(int64_t j, int rows, const Operand* const* a, Compute* acc) const {
    if (!panels_) {
      kernels_.multiply_unpacked(rows, k_, a, w_ + j * block_ * k_, k_, gates_, H_, units(j), block_, acc);
    } else if (tiles_ == 1) {
      multiply_tile(j, 0, rows, a, acc);
    } else {
      for (int tile = 0; tile < tiles_; ++tile) {
        alignas(64) Compute part[acc_size];
        multiply_tile(j, tile, rows, a, part);
        for (int m = 0; m < rows; ++m) {
          std::copy_n(part + m * tile_columns(), tile_columns(),
                      acc + m * columns() + first_gate(tile) * block_);
        }
      }
    }
  }

 private:
  // A cell of more gates than a tile has vectors takes two tiles of equal size; if its gates are odd in
  // number, both compute the one in the middle.
  int64_t first_gate(int tile) const { return tile == 0 ? 0 : gates_ - tile_gates_; }
  int64_t tile_columns() const { return tile_gates_ * block_; }
  int64_t tile_bytes() const {
    constexpr int64_t more = Kernels::quantizes ? sizeof(int32_t) + sizeof(float) : 0;  // for each column
    return round_up(k_padded_ * tile_columns() * sizeof(Panel) + tile_columns() * more, 64);
  }
  Panel* panel(int64_t j, int tile) const {
    return reinterpret_cast<Panel*>(panels_ + j * panel_bytes() + tile * tile_bytes());
  }
  void multiply_tile(int64_t j, int tile, int rows, const Operand* const* a, Compute* acc) const {
    kernels_.multiply[vectors_][rows](k_padded_, a, panel(j, tile), tile_columns() * kernels_.k_step, acc,
                                      false);
  }

  const Kernels& kernels_;
  const Storage* w_;
  int64_t k_, k_padded_, block_;
  int gates_, tiles_, tile_gates_, vectors_;
  int64_t H_;
  char* panels_ = nullptr;
};

// A sum over all gates, or all rows, is divided into parts of at most this length, since the rounding error
// of one chain of additions grows with its length.
constexpr int64_t longest_sum = 512;

// acc = rows * w, where w is [gates * K, N] and a row holds K numbers for each slot: gate g is multiplied
// with slot slots[g]. Gates in consecutive slots are one product.
template <class Kernels>
class GatedProduct {
 public:
  using Storage = typename Kernels::Storage;
  using Operand = typename Kernels::Operand;
  using Compute = typename Kernels::Compute;
  // once: the product will be used for one step, so that packing would not pay off. w is then read
  // unpacked, if its rows are those of a panel at another distance.
  GatedProduct(const Kernels& kernels, const Storage* w, int64_t k, int64_t N, int gates, const int* slots,
               bool once)
      : kernels_(kernels), w_(w), k_(k), N_(N), gates_(gates) {
    slot_stride_ = round_up(k, kernels.k_step);
    vectors_ = kernels.vectors_for(N);
    for (int g = 0; g < gates; ++g) {
      if (g > 0 && slots[g] == slots[g - 1] + 1) {
        runs_[run_count_ - 1].length += slot_stride_;
      } else {
        runs_[run_count_++] = {slots[g] * slot_stride_, slot_stride_};
      }
    }
    const bool is_panel = std::is_same_v<Storage, Operand> && kernels.k_step == 1 && N % block() == 0;
    packs_ = !once || !is_panel;
  }

  bool packs() const { return packs_; }
  void take_panels(Workspace& workspace) {
    if (packs_) panels_ = workspace.take<Operand>(blocks() * panel_size());
  }

  int64_t block() const { return vectors_ * kernels_.lanes; }
  int64_t blocks() const { return (N_ + block() - 1) / block(); }
  int64_t units(int64_t j) const { return std::min(block(), N_ - j * block()); }
  int64_t columns() const { return block(); }
  int64_t tile_rows() const { return kernels_.tile_rows(vectors_); }
  int64_t slot_stride() const { return slot_stride_; }  // in a row, from slot to slot

  void pack(int64_t j) const {
    for (int g = 0; g < gates_; ++g) {
      kernels_.pack(k_, w_ + g * k_ * N_ + j * block(), N_, units(j), block(),
                    panels_ + j * panel_size() + g * slot_stride_ * block());
    }
  }

  void multiply(int64_t j, int rows, const Operand* const* a, Compute* acc) const {
    const Operand* panel = nullptr;
    int64_t width = 0;
    if (panels_) {
      panel = panels_ + j * panel_size();
      width = block();
    } else if constexpr (std::is_same_v<Storage, Operand>) {
      panel = w_ + j * block();
      width = N_;
    }
    for (int r = 0; r < run_count_; ++r) {
      for (int64_t from = 0; from < runs_[r].length; from += longest_sum) {
        const int64_t k = std::min(longest_sum, runs_[r].length - from);
        const Operand* shifted[max_tile_rows];
        for (int m = 0; m < rows; ++m) shifted[m] = a[m] + runs_[r].offset + from;
        kernels_.multiply[vectors_][rows](k, shifted, panel + from * width, width * kernels_.k_step, acc,
                                          r > 0 || from > 0);
      }
      panel += runs_[r].length * width;
    }
  }

 private:
  struct Run {
    int64_t offset, length;
  };
  int64_t panel_size() const { return gates_ * slot_stride_ * block(); }

  const Kernels& kernels_;
  const Storage* w_;
  int64_t k_, N_, slot_stride_;
  int vectors_, gates_, run_count_ = 0;
  Run runs_[max_gates];
  bool packs_;
  Operand* panels_ = nullptr;  // if null, w is read unpacked
};

// Calls body(row, count) for `rows` in tiles of nearly equal size, at most `max_rows` each.
template <class Body>
void for_tiles(Range rows, int64_t max_rows, Body body) {
  const int64_t tiles = (rows.size() + max_rows - 1) / max_rows;
  for (int64_t i = 0; i < tiles; ++i) {
    const Range tile = part_of(rows.size(), i, tiles);
    body(rows.begin + tile.begin, static_cast<int>(tile.size()));
  }
}

}  // namespace fastrnn
