// The cluster driver's own source, for the host.
#include "cuda/cluster.cu"
