#!/usr/bin/env bash
# What the tables of a GPU are made of, stage by stage, each within a time limit.
#
#   pip install . && [SHAPES="OPT-2.7B …"] bash benchmarks/on_a_gpu.sh FOLDER SECONDS STAGE [STAGE ...]
#
# Run it from the project's root; numbers and logs go to FOLDER. A stage is one of
#   compiled:ROWS:NEW_TOKENS   overhead.py, SHAPES (the paper's seven models'), compiled
#   eager:ROWS:NEW_TOKENS      the same in eager mode
#   answers                    answers.py, compiled, Llama2-7B
#   sanitizer                  the native library's tests under compute-sanitizer
#   tests                      the tests that need a GPU
# Each combination of rows and tokens is a process of its own: code that torch has compiled for one
# shape is compiled for any shape when it meets a second one.
set -u
[ $# -ge 3 ] || { sed -n '2,13p' "$0"; exit 2; }
out=$(realpath -m "$1") limit=$2
shift 2
mkdir -p "$out"
export OMP_NUM_THREADS=1
shapes=${SHAPES:-OPT-6.7B OPT-2.7B GPT-J-6B Llama2-7B Vicuna-7B Qwen2-7B Qwen2-1.5B}
ready=$((limit * 3 / 4))
for stage in "$@"; do
  IFS=: read -r what rows tokens <<<"$stage"
  overhead="python benchmarks/overhead.py --device cuda --shapes $shapes --ready-within $ready
    --batch ${rows:-1} --new-tokens ${tokens:-60} --json $out/$what-${rows:-1}-${tokens:-60}.json"
  case $what in
    compiled) run="$overhead --compiled --turns 60 --variants alone again ft2 checksums recompute" ;;
    eager) run="$overhead --turns 16" ;;
    answers) run="python benchmarks/answers.py --device cuda --compiled --turns 25 --shapes Llama2-7B
      --json $out/answers.json" ;;
    sanitizer) run="compute-sanitizer --error-exitcode 9 pytest -q tests/native" ;;
    tests) run="pytest -q tests/native tests/protection/test_cuda.py tests/plugin/test_cuda.py" ;;
    *) echo "no stage is called $stage"; exit 2 ;;
  esac
  echo "== $stage"
  # shellcheck disable=SC2086
  timeout "$limit" $run >"$out/${stage//:/-}.log" 2>&1
  echo "exit status $?"
  tail -n 20 "$out/${stage//:/-}.log"
done
