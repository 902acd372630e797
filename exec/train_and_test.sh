#!/usr/bin/env bash
# Trains a model on a data set and scores its test split: bash exec/train_and_test.sh RSITMD [MODEL] [--set KEY=VALUE ...]
# MODEL: GaLR (default), AMFMN, VSEPP or CLIP. The data lie where option/NAME/NAME_MODEL.yaml says (README.md).
# It runs on the GPU with the most free memory; GPU=1 uses the second one, GPUS=4 trains on the four with the most: folds side
# by side, or several processes a fold. Run again, it goes on.
[ -n "${GPUS:-}" ] || [ -z "${GPU:-}" ] || export CUDA_VISIBLE_DEVICES=$GPU
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
OPTIONS=option/$NAME/${NAME}_$MODEL.yaml

PATHS=$(python -m option --path_opt "$OPTIONS" "$@" --get dataset.vocab_path dataset.data_path)
mapfile -t PATHS <<< "$PATHS"
VOCAB=${PATHS[0]:-none}
if [ "$VOCAB" != none ] && [ ! -f "$VOCAB" ]; then
    python vocab.py --data_path "${PATHS[1]}" --data_name "${NAME,,}_precomp" --out "$VOCAB"
fi
if [ -n "${GPUS:-}" ]; then
    python -m exec.fold_jobs --path_opt "$OPTIONS" "$@" &
    job=$!
    trap 'kill -TERM $job 2> /dev/null' INT TERM  # the folds save and stop
    wait $job && status=0 || status=$?
    while kill -0 $job 2> /dev/null; do wait $job && status=0 || status=$?; done  # a signal ended the waiting alone
    trap - INT TERM
    [ "$status" = 0 ] || exit "$status"
else
    python train.py --path_opt "$OPTIONS" --resume "$@"
fi
python test.py --path_opt "$OPTIONS" --rerank "$@"
