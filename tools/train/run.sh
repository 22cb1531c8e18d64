#!/bin/sh
# sh run.sh SCRIPT.py [ARGUMENT...]: runs a script with the environment that speed depends on.
# OpenBLAS mis-detects virtual CPUs (3 to 5 times slower without CORETYPE), and large buffers must be kept by
# malloc instead of being returned to the kernel at every free.
export OPENBLAS_CORETYPE="${OPENBLAS_CORETYPE:-SKYLAKEX}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
export MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
script=$1
shift
exec nice -n 10 /usr/bin/python3 "$(dirname "$0")/$script" "$@"
