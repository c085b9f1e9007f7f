// The order in which the gradients of a cell's slots are stored: as columns of H numbers each.
#pragma once

namespace fastrnn::cuda {

// Slots that only the input's product reads come first, then those that both products read, then those that
// only the recurrent product reads. So the columns of each product are adjacent, and each product is one
// matrix. GRU: the input's part of n, r, z, the recurrent part of n.
template <class Cell>
struct Columns {
  int of_slot[Cell::slots] = {};  // column of a slot
  int x_gate[Cell::gates] = {};   // gate of column i of the input's product, which starts at column 0
  int h_start = 0;                // first column of the recurrent product
  bool h_in_order = true;         // the recurrent product's columns are the gates in order
  int x_slot[Cell::gates] = {}, h_slot[Cell::gates] = {};

  constexpr Columns() {
    bool by_x[Cell::slots] = {}, by_h[Cell::slots] = {};
    for (int g = 0; g < Cell::gates; ++g) {
      x_slot[g] = Cell::x_slot[g];
      h_slot[g] = Cell::h_slot[g];
      by_x[x_slot[g]] = by_h[h_slot[g]] = true;
    }
    int next = 0;
    const bool wants_x[] = {true, true, false}, wants_h[] = {false, true, true};
    for (int pass = 0; pass < 3; ++pass) {
      if (pass == 1) h_start = next;
      for (int i = 0; i < Cell::slots; ++i) {
        if (by_x[i] == wants_x[pass] && by_h[i] == wants_h[pass]) of_slot[i] = next++;
      }
    }
    for (int g = 0; g < Cell::gates; ++g) {
      x_gate[of_slot[x_slot[g]]] = g;
      if (of_slot[h_slot[g]] != h_start + g) h_in_order = false;
    }
  }
};

}  // namespace fastrnn::cuda
