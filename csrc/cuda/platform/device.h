// CUDA itself, or its emulation on the host (emulation/emulation.h).
#pragma once

#ifdef FASTRNN_EMULATED
#include "emulation/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif
