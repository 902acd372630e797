#!/usr/bin/env bash
# Trains GaLR on SYDNEY and scores the test split. Put the data where option/SYDNEY/SYDNEY_GaLR.yaml says (README.md).
# GPU=1 bash exec/SYDNEY/run_GaLR_sydney.sh uses the second GPU. Run again, it goes on where it was.
# Arguments go to train.py and test.py (--set KEY=VALUE ..., --device cpu).
source "$(dirname "${BASH_SOURCE[0]}")/../environment.sh"
export CUDA_VISIBLE_DEVICES=${GPU:-0}
OPTIONS=option/SYDNEY/SYDNEY_GaLR.yaml

[ -f vocab/sydney_vocab.json ] || python vocab.py --data_path data/sydney_precomp --data_name sydney_precomp
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank "$@"
