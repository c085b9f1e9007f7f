// Which instruction set's kernels run.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace fastrnn {

// The best target this processor has, or the one that the environment variable FASTRNN_CPU_CAPABILITY
// names. Decided at the first call. Throws std::runtime_error for a name unknown or not to be run here.
const Target& target();

// Names of the targets compiled in, worst first, and of those that this processor can run.
std::vector<std::string> compiled_targets();
std::vector<std::string> usable_targets();

}  // namespace fastrnn
