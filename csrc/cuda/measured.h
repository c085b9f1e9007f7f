// Written by tools/dispatch_table.py from what benchmarks/cuda.py measured; not by hand.
#pragma once

#include <array>

#include "cuda/problem.h"

namespace fastrnn::cuda {

// clang-format off
// No GPU has measured a driver yet.
inline constexpr std::array<Measured, 0> measured{};
// clang-format on

}  // namespace fastrnn::cuda
