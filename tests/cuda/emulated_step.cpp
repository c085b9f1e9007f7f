// The step driver's own source, for the host.
#include "cuda/step/step.cu"
