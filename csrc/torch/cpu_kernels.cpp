#include "torch/cpu_kernels.h"

namespace fastrnn {
namespace {

AnyKernels choose_float_kernels(const Target& t, Packing packing, Precision precision, bool may_split) {
  if (packing == Packing::bf16) {
    FASTRNN_CHECK_VALUE(t.f32_bf16_dot, "bfloat16 weights would be no faster on ", t.name,
                        ", which has no products of bfloat16: pack as int8 or as float32");
    return t.f32_bf16_dot;
  }
  if (packing == Packing::int8) return t.f32_int8;
  if (t.f32_bf16_dot == nullptr) return t.f32;  // rounded products would be no faster
  if (precision == Precision::medium) return t.f32_bf16_dot;
  if (t.f32_split && precision == Precision::high && may_split) return t.f32_split;
  return t.f32;
}

}  // namespace

Packing find_packing(std::string_view weights, Dtype dtype) {
  if (weights == "own") return Packing::own;
  FASTRNN_CHECK_VALUE(weights == "bfloat16" || weights == "int8",
                      "fastrnn: weights can be packed as own, bfloat16 or int8, got ", weights);
  FASTRNN_CHECK_VALUE(dtype == Dtype::float32, "fastrnn: only float32 weights can be packed as ", weights,
                      ", got ", dtype);
  return weights == "int8" ? Packing::int8 : Packing::bf16;
}

AnyKernels choose_kernels(Dtype dtype, Packing packing, Precision precision, bool may_split) {
  const Target& t = target();
  switch (dtype) {
    case Dtype::float32:
      return choose_float_kernels(t, packing, precision, may_split);
    case Dtype::float64:
      return t.f64;
    case Dtype::float16:
      return t.f16;
    case Dtype::bfloat16:
      if (t.bf16_dot) return t.bf16_dot;
      return t.bf16;
    default:
      fail<std::invalid_argument>(
          "fastrnn: the kernels compute in float32, float64, bfloat16 and float16, not in ", dtype);
  }
}

}  // namespace fastrnn
