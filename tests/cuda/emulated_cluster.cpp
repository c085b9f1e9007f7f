// The cluster driver's own source, for the host.
#include "cuda/on_chip/cluster.cu"
