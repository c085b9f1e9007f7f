// What a driver computes on a GPU: one layer in one direction, as plain pointers and sizes.
//
// Sequence, Weights and ForwardArgs are the CPU's (layer/args.h), with everything in device memory but
// Sequence::first, which the host reads; x is dense. Numbers in arrays are counted in 64 bits.
#pragma once

#include "layer/args.h"

namespace fastrnn::cuda {

template <class Storage>
struct BackwardArgs {
  CellId cell;
  Sequence sequence;
  Weights<Storage> weights;
  const Storage* x;      // [rows, I]
  const Storage* h0;     // [B, P]
  const Storage* c0;     // [B, H] or null
  const Storage* y;      // [rows, P]
  const Storage* c;      // [rows, H] or null
  const Storage* slots;  // [rows, S * H], or null: recomputed where the cell keeps slots
  const Storage* dy;     // [rows, P] or null
  const Storage* dh_n;   // [B, P] or null
  const Storage* dc_n;   // [B, H] or null
  const Storage* dc;     // [rows, H] or null
  Storage* dx;           // [rows, I] or null where not asked for
  Storage* dh0;          // [B, P]
  Storage* dc0;          // [B, H] or null
  Storage* dw_ih;        // [G * H, I] or null; the others are asked for where this is
  Storage* dw_hh;        // [G * H, P]
  Storage* db_ih;        // [G * H] or null
  Storage* db_hh;        // [G * H] or null
  Storage* dw_hr;        // [P, H] or null
};

}  // namespace fastrnn::cuda
