#!/usr/bin/env bash
# Trains a model on a data set and scores its test split: bash exec/train_and_test.sh RSITMD [MODEL] [--set KEY=VALUE ...]
# MODEL: GaLR (as without it), AMFMN, VSEPP or CLIP. The data go where option/NAME/NAME_MODEL.yaml says (README.md).
# GPU=1 uses the second GPU, GPUS=4 trains on four: folds side by side, or several processes a fold. Run again, it goes on.
[ -n "${GPUS:-}" ] || export CUDA_VISIBLE_DEVICES=${GPU:-${CUDA_VISIBLE_DEVICES-0}}  # set to nothing, it stays so: no GPU
if [ $# -lt 1 ]; then
    echo "error: name a data set: bash exec/train_and_test.sh RSITMD [MODEL] [--set KEY=VALUE ...]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=$1 MODEL=GaLR
shift
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    MODEL=$1
    shift
fi
DATA=$(echo "$NAME" | tr '[:upper:]' '[:lower:]')
OPTIONS=option/$NAME/${NAME}_$MODEL.yaml

[ -f "vocab/${DATA}_vocab.json" ] || python vocab.py --data_path "data/${DATA}_precomp" --data_name "${DATA}_precomp"
if [ -n "${GPUS:-}" ]; then
    source exec/train_folds.sh
    train_folds "$OPTIONS" "$@"
else
    python train.py --path_opt "$OPTIONS" --resume "$@"
fi
python test.py --path_opt "$OPTIONS" --rerank "$@"
