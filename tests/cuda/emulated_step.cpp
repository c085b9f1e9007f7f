// The step driver's own source, and what all drivers share, for the host.
#include "cuda/common/padding.cu"
#include "cuda/step/step.cu"
