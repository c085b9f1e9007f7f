// What a driver is asked for, and what was measured of drivers.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "cells/cell_info.h"
#include "cuda/blas.h"

namespace fastrnn::cuda {

enum class Pass { forward, backward };

struct Problem {
  CellId cell;
  Type type;
  Pass pass;
  int64_t T, B, H;
  bool projects;
  bool tf32;  // float32 may be rounded to TF32
  int arch;   // of the GPU: 90 is sm_90

  // Products of the tensor cores' narrow numbers are exact enough.
  bool rounds() const { return type != Type::float64 && (type != Type::float32 || tf32); }
};

// Where a driver was measured to be faster than the step driver. Ranges include both ends, and hold for
// nothing outside: not for another GPU, nor for fewer steps.
struct Measured {
  std::string_view driver;
  int arch;
  CellId cell;
  Type type;
  Pass pass;
  int64_t min_T, min_H, max_H, min_B, max_B;
  double ratio;  // time of the step driver by this one's, the least in the range
};

// The first row that the problem falls into, or null.
constexpr const Measured* find_measured(std::span<const Measured> table, const Problem& p) {
  for (const Measured& row : table) {
    if (row.arch == p.arch && row.cell == p.cell && row.type == p.type && row.pass == p.pass &&
        row.min_T <= p.T && row.min_H <= p.H && p.H <= row.max_H && row.min_B <= p.B && p.B <= row.max_B) {
      return &row;
    }
  }
  return nullptr;
}

}  // namespace fastrnn::cuda
