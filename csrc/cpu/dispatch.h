// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

// All targets, each a file and a namespace of that name, worst first.
#if defined(__x86_64__)
#define FASTRNN_TARGETS(X) \
  X(portable) X(avx2) X(avx2_vnni) X(avx512) X(avx512_vnni) X(avx512_bf16) X(avx512_amx)
#elif defined(__aarch64__)
#define FASTRNN_TARGETS(X) X(portable) X(neon) X(neon_bf16)
#else
#define FASTRNN_TARGETS(X) X(portable)
#endif

namespace fastrnn {

// The best target that this processor runs, or the one that the environment variable FASTRNN_CPU_CAPABILITY
// names. Decided at the first call. Throws as usable_target does.
const Target& target();

// The target of this name. Throws std::runtime_error if there is none or this processor can't run it.
const Target& usable_target(const std::string& name);

// Names of the targets compiled in, worst first, and of those that this processor runs.
std::vector<std::string> compiled_targets();
std::vector<std::string> usable_targets();

}  // namespace fastrnn
