// The grid driver's own source, for the host.
#include "cuda/grid.cu"
