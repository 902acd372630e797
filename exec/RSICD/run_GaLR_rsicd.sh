#!/usr/bin/env bash
# Trains GaLR on RSICD and scores the test split. Put the data where option/RSICD/RSICD_GaLR.yaml says (README.md).
# GPU=1 bash exec/RSICD/run_GaLR_rsicd.sh uses the second GPU. Run again, it goes on where it was.
# Arguments go to train.py and test.py (--set KEY=VALUE ..., --device cpu).
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
export CUDA_VISIBLE_DEVICES=${GPU:-0}
OPTIONS=option/RSICD/RSICD_GaLR.yaml

[ -f vocab/rsicd_vocab.json ] || python vocab.py --data_path data/rsicd_precomp --data_name rsicd_precomp
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank "$@"
