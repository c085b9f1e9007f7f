#!/usr/bin/env bash
# Builds the compiled part with address and undefined-behavior sanitizers, beside the usual build, and
# runs the tests that drive the kernels on it, once for each CPU target. Any finding ends the run with
# its report.
#
#     tests/sanitize.sh              with the python on PATH
#     PYTHON=.venv/bin/python FASTRNN_TEST_CONFIGS=200 tests/sanitize.sh
#
# Needs what the usual build needs, and the compiler's libasan and libubsan.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
base=$PWD/build/sanitize

# With the matrix tiles of avx512_amx in plain C++, so that every processor with AVX-512 and bfloat16 runs them.
CFLAGS="${CFLAGS:-} -DFASTRNN_EMULATED_AMX" FASTRNN_SANITIZE=1 FASTRNN_CUDA=0 "$python" setup.py -q build --build-base "$base"
built=("$base"/lib.*)

# A sanitizer must be loaded before everything else, and libstdc++ before anything throws.
preload=
for library in libasan.so libubsan.so libstdc++.so; do
  preload+="$("${CXX:-g++}" -print-file-name=$library) "
done

# -P: the package in the source tree is not the one to import. Memory that Python and torch keep until
# the end is no leak, and symbols that they share are no clash.
sanitized() {
  LD_PRELOAD=$preload PYTHONPATH=${built[0]} PYTHONMALLOC=malloc \
    ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0:abort_on_error=1 \
    UBSAN_OPTIONS=print_stacktrace=1 "$python" -P "$@"
}

# The kernels of every target, called directly: a program of its own.
FASTRNN_SANITIZE=1 "$python" -m pytest -q -rf -p no:cacheprovider tests/kernels

# --capture=sys: a finding is written by the process itself, which it ends, and must not end in pytest's files.
export FASTRNN_TEST_CONFIGS=${FASTRNN_TEST_CONFIGS:-50}
for target in $(sanitized -c 'import fastrnn; print(*fastrnn.build_info()["cpu_targets_usable"])'); do
  echo "sanitized kernels on $target"
  only="not opcheck"
  # Its other products are avx512_bf16's, and emulated tiles take their time.
  if [ "$target" = avx512_amx ]; then only+=" and (bfloat16 or precision)"; fi
  FASTRNN_CPU_CAPABILITY=$target sanitized -m pytest -q -rf --capture=sys -p no:cacheprovider -k "$only" \
    tests/test_parity.py tests/test_ops.py tests/test_precision.py tests/test_threads.py::test_callers_at_once
done
