#!/usr/bin/env bash
# For the first person with a card: checks everything that only a GPU can show and writes check_gpu.md, to attach to a report.
#   bash exec/check_gpu.sh [--device cuda:1] [--out check_gpu.md]      about half an hour
#   bash exec/check_gpu.sh --device cpu --small                        a rehearsal without a card, a minute
# Environment, tests/test_cuda.py, speed and memory in each precision, each precision against float32, determinism, and
# two processes where there are two cards.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
python -m bench.check_gpu "$@"
