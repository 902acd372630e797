#!/usr/bin/env bash
# Trains GaLR on a data set and scores its test split: bash exec/train_and_test.sh RSITMD [arguments of train.py and test.py]
# The data go where option/NAME/NAME_GaLR.yaml says (README.md). GPU=1 uses the second GPU. Run again, it goes on.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export CUDA_VISIBLE_DEVICES=${GPU:-${CUDA_VISIBLE_DEVICES:-0}}
NAME=${1:?name a data set, such as RSITMD}
shift
DATA=$(echo "$NAME" | tr '[:upper:]' '[:lower:]')
OPTIONS=option/$NAME/${NAME}_GaLR.yaml

[ -f "vocab/${DATA}_vocab.json" ] || python vocab.py --data_path "data/${DATA}_precomp" --data_name "${DATA}_precomp"
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank "$@"
