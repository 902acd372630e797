#!/usr/bin/env bash
# Trains GaLR on UCM and scores the test split. Put the data where option/UCM/UCM_GaLR.yaml says (README.md).
# GPU=1 bash exec/UCM/run_GaLR_ucm.sh uses the second GPU. Run again, it goes on where it was.
# Arguments go to train.py and test.py (--set KEY=VALUE ..., --device cpu).
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
export CUDA_VISIBLE_DEVICES=${GPU:-0}
OPTIONS=option/UCM/UCM_GaLR.yaml

[ -f vocab/ucm_vocab.json ] || python vocab.py --data_path data/ucm_precomp --data_name ucm_precomp
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank "$@"
