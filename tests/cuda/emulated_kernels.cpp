// The kernels' and drivers' own source, for the host.
#include "cuda/step.cu"
