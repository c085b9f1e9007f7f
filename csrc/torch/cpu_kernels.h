// Which table of kernels serves a call on the CPU: by the tensors' type, how weights are packed, and how
// exact torch's settings want products to be.
#pragma once

#include <string_view>
#include <type_traits>
#include <variant>

#include "cpu/dispatch.h"
#include "layer/sequence.h"
#include "torch/stable/tensor.h"

namespace fastrnn {

// How a layer's matrices are stored: in the tensors' own type, or packed in fewer bits.
enum class Packing { own, bf16, int8 };
// The least exact products of float32 that a call allows, as ops.py reads it from torch's settings: of
// operands as they are, of each as the sum of two bfloat16, or of operands rounded to bfloat16.
enum class Precision : int64_t { highest = 0, high = 1, medium = 2 };

Packing find_packing(std::string_view weights, Dtype dtype);

using AnyKernels = std::variant<const Kernels<float, float, float>*,        //
                                const Kernels<double, double, double>*,     //
                                const Kernels<BFloat16, float, float>*,     //
                                const Kernels<Half, float, float>*,         //
                                const Kernels<BFloat16, BFloat16, float>*,  //
                                const Kernels<float, BFloat16, float>*,     //
                                const Kernels<float, SplitFloat, float>*,   //
                                const Kernels<float, QuantizedByte, float>*>;

// may_split: products of split floats may be used if `precision` allows them.
AnyKernels choose_kernels(Dtype dtype, Packing packing, Precision precision, bool may_split);

// Whether products of split floats, if the instruction set has them, are faster than exact ones: a tile
// needs several rows of a step, and packing many rows in all.
inline bool split_pays(const Sequence& sequence) { return sequence.B >= 8 && sequence.rows > 128; }

template <class Kernels>
using StorageOf = typename std::remove_cvref_t<Kernels>::Storage;

// Calls body(kernels) with the table that was chosen.
template <class Body>
auto with_kernels(const AnyKernels& any, Body body) {
  return std::visit([&](const auto* kernels) { return body(*kernels); }, any);
}

}  // namespace fastrnn
